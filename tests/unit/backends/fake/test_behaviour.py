"""The settings of the fake backend, and its deterministic answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fake import words
from backends.fake.behaviour import (
    Behaviour,
    BehaviourError,
    Script,
    from_environment,
    from_pairs,
    settings,
    with_settings,
)


def told(**values: object) -> Behaviour:
    return with_settings(Behaviour(), values)


def test_every_setting_can_be_given_as_text() -> None:
    for _, name, kind, default, help in settings():
        assert kind in ("str", "int", "float", "bool") and help
        assert getattr(told(**{name: str(default)}), name) == default


def test_the_environment() -> None:
    found = from_environment({"FAKE_LOAD_SECONDS": "2.5", "HOME": "/", "FAKE_UNIX": "off"})
    behaviour = with_settings(Behaviour(), found)
    assert behaviour.load_seconds == 2.5 and behaviour.unix is False


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("lode=refuse", "did you mean 'load'"),
        ("load=refuze", "is not one of ok, refuse"),
        ("load_seconds=soon", "is not a number"),
        ("crash=perhaps", "neither true nor false"),
        ("crash", "is not key=value"),
    ],
)
def test_what_makes_no_sense(pair: str, said: str) -> None:
    with pytest.raises(BehaviourError, match=said):
        with_settings(Behaviour(), from_pairs([pair]))


def test_the_file_is_read_again(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "behaviour.json"
    script = Script(told(load="refuse", tokens=7), file)
    assert script.now().load == "refuse"
    file.write_text(json.dumps({"load": "crash"}))
    assert script.now() == told(load="crash", tokens=7)
    assert script.now(["load=hang"]).load == "hang"
    file.write_text("{")
    assert script.now().load == "crash" and "behaviour.json" in capsys.readouterr().err
    file.unlink()
    assert script.now().load == "refuse"


@given(st.text())
def test_words(text: str) -> None:
    assert "".join(words.pieces(text)) == text
    assert words.untokenized(words.tokens(text)) == text
    assert abs(sum(value * value for value in words.vector(text)) - 1) < 1e-6
    assert words.vector(text) == words.vector(text)
    assert 0 <= words.share(text) <= 1
