"""The short way from a text to its values is the long way's equal."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.common import go_yaml
from services.common.go_yaml import as_written, first_document, first_node
from services.common.syntax_errors import yaml_errors


def outcome(read: Any, text: str) -> tuple[str, Any]:
    try:
        return "value", plain(read(text))
    except ValueError as error:
        return type(error).__name__, str(error)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return [(repr(key), plain(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return (type(value).__name__, repr(value), as_written(value))


def long_way(text: str) -> Any:
    with yaml_errors(text):
        return go_yaml._load(go_yaml._Quick, text)


SAMPLES = (
    *("", "# c", "---\n", "a", "~", "- 1\n- a", "{}", "--- a\n--- b", "a: &x [1]\nb: *x", "a: *x"),
    *("<<: {a: 1}", '"<<": 1', "? [a]\n: b", "{{a}}: b", "!!str 1", "! 1", 'a: !!int "3"'),
    *("a: 1\na: 2", "a: [", "\ta: 1", "%YAML 1.1\n---\na: 1", "1: 2\ntrue: 3\n~: 4", "a: |\n  x\n"),
    *(
        ">\n*",
        "a\n- b",
        "x: 0x1F\ny: 1e3\nz: .5\nn: 010",
        "a: 'b'\nc: \"d\\n\"",
        "b: !custom {a: 1}",
    ),
    *("&a b: *a", "x: &a {y: 1}\nz: {<<: *a, w: 2}", "a: yes\nb: 2024-01-01\nc: =", "[a, {b: c}]"),
)


@pytest.mark.parametrize("text", SAMPLES)
def test_both_ways_lead_to_the_same(text: str) -> None:
    assert outcome(first_document, text) == outcome(long_way, text)


@given(st.text(alphabet="ab1.~:-[]{}&*!<>|#'\" \n", max_size=40))
def test_both_ways_lead_to_the_same_for_any_text(text: str) -> None:
    assert outcome(first_document, text) == outcome(long_way, text)


def test_nodes_know_their_lines() -> None:
    node = first_node("# one\na: 1\nb:\n- x\n")
    assert isinstance(node, yaml.MappingNode)
    assert [key.start_mark.line for key, _ in node.value] == [1, 2]
    assert first_node("# nothing") is None
