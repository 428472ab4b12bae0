"""YAML as galleries write it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.common.go_yaml import dump
from services.gallery.index.document import DocumentError, parse, parse_mapping, plain

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | TEXTS
    | st.sampled_from(
        ["1e5", "1:30", "yes", "0x1f", "1_000", "~", "null", "-", "a\nb\n", "012", ".5"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1e6", 1e6), ("1.5", 1.5), (".5", 0.5), ("-3", -3), ("+3", 3),
        ("1:30", "1:30"), ("0x1f", 31), ("0o17", 15), ("012", 10), ("yes", "yes"), ("on", "on"), ("true", True), ("~", None),
        ("'1e5'", "1e5"), (".inf", float("inf")), ("2026-01-01", "2026-01-01"), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_scalars_are_read_as_go_reads_them(text: str, value: Any) -> None:
    assert parse_mapping(f"a: {text}") == {"a": value}


def test_the_escape_that_only_go_knows() -> None:
    assert parse(r'''a: "it\'s"''') == {"a": "it's"}


def test_what_is_no_yaml_is_said_with_its_line() -> None:
    with pytest.raises(DocumentError, match="line 2"):
        parse("a: 1\nb: [")
    with pytest.raises(DocumentError, match="list where a map"):
        parse_mapping("- a")


def test_aliases_that_multiply_are_refused() -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    with pytest.raises(DocumentError, match="aliases"):
        parse_mapping(bomb)
    with pytest.raises(DocumentError):
        parse_mapping("a: &a [*a]")


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_is_written_is_read_again(value: dict[str, Any]) -> None:
    assert parse(dump(value)) == value


@given(TEXTS | st.sampled_from(["1e5", "1:30", "yes", "0x1f", "on", "1_000"]))
def test_a_text_stays_one_for_other_readers(text: str) -> None:
    assert yaml.safe_load(dump({"a": text})) == {"a": text}


def test_plain_copies_share_nothing() -> None:
    shared = {"x": [1]}
    copied = plain({"a": shared, "b": shared})
    copied["a"]["x"].append(2)
    assert copied["b"] == {"x": [1]}
    assert shared == {"x": [1]}
    assert plain({True: 1, 5: 2}) == {"true": 1, "5": 2}
