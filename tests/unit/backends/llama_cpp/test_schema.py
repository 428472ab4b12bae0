"""JSON schemas as grammars; the integration tests let the engine follow them."""

from typing import Any

import pytest

from backends.llama_cpp.schema import UnsupportedSchemaError, to_grammar

RECURSIVE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
}


def rules(schema: Any) -> dict[str, str]:
    lines = to_grammar(schema).strip().split("\n")
    return dict(line.split(" ::= ", 1) for line in lines)


def unfolded(schema: Any) -> str:
    """The root with the generated rules written out."""
    found = rules(schema)
    text = found["root"]
    for _ in range(30):
        for name in [name for name in found if name[0] == "r" and name[1:].isdigit()]:
            text = " ".join(found[name] if word == name else word for word in text.split(" "))
    return text


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (True, "value"),
        ({}, "value"),
        ({"title": "only notes"}, "value"),
        ({"type": "integer"}, "integer"),
        ({"type": "string", "format": "date"}, "string"),
        ({"const": 'a"b'}, r'"\"a\\\"b\"" space'),
        ({"enum": ["a", 1, None]}, r'"\"a\"" space | "1" space | "null" space'),
        ({"type": ["string", "null"]}, "string | null"),
        ({"type": "string", "minLength": 2, "maxLength": 3}, r'"\"" char{2,3} "\"" space'),
        ({"type": "string", "maxLength": 0}, r'"\"" char{0,0} "\"" space'),
        ({"type": "array", "maxItems": 0}, '"[" space "]" space'),
        (
            {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
            '"[" space boolean ("," space boolean){1,} "]" space',
        ),
        (
            {"properties": {"a": {"type": "null"}}, "required": ["a"]},
            r'"{" space "\"a\"" space ":" space null "}" space',
        ),
        ({"allOf": [{"type": "null"}]}, "null"),
    ],
)
def test_texts(schema: Any, text: str) -> None:
    assert unfolded(schema) == text


def test_references_may_be_recursive() -> None:
    found = rules(RECURSIVE)
    assert found["root"] == "ref0"
    assert any("ref0 | null" in body for body in found.values())


def test_names_are_unique() -> None:
    lines = to_grammar(RECURSIVE).strip().split("\n")
    names = [line.split(" ::= ")[0] for line in lines]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "string", "pattern": "a"}, "pattern"),
        ({"type": "integer", "minimum": 1}, "minimum"),
        ({"type": "thing"}, "thing"),
        ({"allOf": [{}, {}]}, "allOf"),
        ({"anyOf": [{}], "properties": {}}, "anyOf"),
        ({"enum": []}, "enum"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "http://x"}, "ref"),
        ({"type": "object", "required": ["a"], "properties": {}}, "required"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"not": {}}, "None"),
        ([], "no schema"),
        (False, "no schema"),
    ],
)
def test_what_can_not_be_said(schema: Any, word: str) -> None:
    with pytest.raises(UnsupportedSchemaError, match=word):
        to_grammar(schema)


def test_depth_is_bounded() -> None:
    schema: Any = {}
    for _ in range(1000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UnsupportedSchemaError, match="levels"):
        to_grammar(schema)
