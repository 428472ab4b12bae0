"""Syntax errors are reported in our own words, with their place, whichever library found them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from services.common.go_yaml import first_document
from services.common.syntax_errors import (
    TextSyntaxError,
    json_errors,
    toml_errors,
    yaml_errors,
)


def of(read: Callable[[], Any]) -> TextSyntaxError:
    with pytest.raises(TextSyntaxError) as caught:
        read()
    return caught.value


def plain_yaml(text: str, loader: Any) -> Any:
    with yaml_errors(text):
        return yaml.load(text, loader)


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml.CSafeLoader])
@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("a: 1\nb: c: d\n", "`: ` inside a value", 2),
        ("a: 1\nb: *c\n", "an alias without its anchor", 2),
        ("a: 1\n{b: 1}: 2\n", "a map or a list as a name", 2),
        ("a: 1\nb: [1, 2\nc: 3\n", "a missing `,` or closing bracket", 3),
        ("a: 1\nb: @c\n", "a character that cannot begin a value", 2),
        ('a: 1\nb: "c\\q"\n', "an unknown escape after a backslash", 2),
        ("a: 1\nb: 'c\n", "a quote that is not closed", None),
        ("a: 1\nb: !c d\n", "an unknown tag", 2),
        ("a: 1\nb: \x07\n", "a control character", 2),
    ],
)
def test_the_words_are_the_same_for_both_parsers(
    loader: Any, text: str, problem: str, line: int | None
) -> None:
    error = of(lambda: plain_yaml(text, loader))
    assert error.problem == problem
    assert line is None or error.line == line
    assert error.column is not None


def test_an_unknown_problem_keeps_its_place_and_none_of_the_librarys_words() -> None:
    def fail() -> None:
        with yaml_errors("a: 1\nb: 2\n"):
            mark = yaml.Mark("<string>", 6, 1, 1, None, 0)
            raise yaml.MarkedYAMLError("while dreaming", None, "gremlins at work", mark)

    assert (
        str(of(fail)) == "is not YAML: it cannot be parsed (line 2, column 2); fix the YAML there"
    )


def test_depth_has_one_message_whether_the_parser_or_python_gives_up() -> None:
    def give_up(error: Exception) -> TextSyntaxError:
        def read() -> None:
            with yaml_errors("["):
                raise error

        return of(read)

    mark = yaml.Mark("<string>", 1000, 0, 1000, None, 0)
    parser = yaml.MarkedYAMLError(None, None, "exceeded maximum nesting depth", mark)
    expected = "is not YAML: nested too deep; no configuration needs that"
    assert str(give_up(parser)) == str(give_up(RecursionError())) == expected
    assert str(of(lambda: first_document("[" * 5000))) == expected


def test_a_line_at_the_end_of_the_text_is_its_last() -> None:
    assert of(lambda: first_document("a: [")).line == 1


def test_toml_keeps_line_and_column() -> None:
    def read(text: str) -> None:
        with toml_errors():
            tomllib.loads(text)

    expected = "is not TOML: it cannot be parsed (line 2, column 5); fix the TOML there"
    assert str(of(lambda: read("a = 1\nb = nope\n"))) == expected
    assert str(of(lambda: read("a = ["))).startswith("is not TOML: it cannot be parsed")


def test_json_keeps_line_and_column() -> None:
    def read(text: bytes) -> None:
        with json_errors():
            json.loads(text.decode())

    expected = "is not JSON: it cannot be parsed (line 2, column 2); fix the JSON there"
    assert str(of(lambda: read(b"{\n x}"))) == expected
    assert (
        str(of(lambda: read(b"\xff"))) == "is not JSON: not UTF-8; save the file in that encoding"
    )
    assert str(of(lambda: read(b"[" * 500_000))).startswith("is not JSON: nested too deep")
