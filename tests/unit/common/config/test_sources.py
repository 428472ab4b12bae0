from pathlib import Path
from typing import ClassVar

import pytest

from services.common.config.settings import ServiceSettings, describe
from services.common.config.sources import from_environment, from_file, from_flags, nearest


class Settings(ServiceSettings):
    service: ClassVar[str] = "thing"
    names: tuple[str, ...] = ()
    quick: bool = False


DOCS = describe(Settings)


def test_flags() -> None:
    found = from_flags(
        DOCS, ["--names", "a", "--names=b", "--quick", "--no-quick", "--config", "f", "--help"]
    )
    assert found.values == {"names": ["a", "b"], "quick": "false"}
    assert found.origins == {"names": "--names", "quick": "--no-quick"}
    assert (found.config, found.help, found.version, found.problems) == ("f", True, False, [])


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("--nmaes", "--nmaes: no such flag; did you mean --names?"),
        ("--names", "--names: needs a value"),
        ("stray", "'stray': not expected; every setting is a --flag"),
    ],
)
def test_wrong_flags(word: str, problem: str) -> None:
    assert from_flags(DOCS, [word]).problems == [problem]


def test_the_environment() -> None:
    found = from_environment(DOCS, {"CORRAL_THING_NAMES": "a, b", "CORRAL_OTHER_NAMES": "c"})
    assert found.values == {"names": ["a", "b"]}
    assert found.origins == {"names": "CORRAL_THING_NAMES"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.yaml", "log-level: info\nthing:\n  quick: true\n"),
        ("f.toml", 'log-level = "info"\n[thing]\nquick = true\n'),
    ],
)
def test_a_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    found = from_file(DOCS, "thing", path)
    assert found.values == {"log_level": "info", "quick": True}
    assert found.origins == {"log_level": f"{path}: log_level", "quick": f"{path}: thing.quick"}
    assert found.problems == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a", "must hold keys and values"),
        ("thing: 5", "thing: must hold keys and values"),
        ("thing: {quik: 1}", "thing.quik: no such setting; did you mean quick?"),
        ("names_: 5", "names_: no such setting; did you mean names?"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    (found,) = from_file(DOCS, "thing", path).problems
    assert found.endswith(problem)


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    (problem,) = from_file(DOCS, "thing", tmp_path / "none").problems
    assert "No such file" in problem


def test_nearest() -> None:
    assert nearest("lisen", ["listen", "other"]) == "; did you mean listen?"
    assert nearest("xyz", ["listen"]) == ""
