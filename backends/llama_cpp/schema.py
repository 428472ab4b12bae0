"""JSON schemas as GBNF grammars.

llama.cpp in this build passes schemas to llguidance, which knows every keyword. But with a
SentencePiece vocabulary that puts a space in front of a text, llguidance fails at the first brace,
and the answer has no constraint. GBNF works with every vocabulary, so it is used wherever it can
express the schema.
"""

import json
from collections.abc import Mapping
from typing import Any

# Keywords that do not affect the generated text.
_NOTES = frozenset(
    [
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "$comment", "$defs", "definitions", "format", "strict", "name"),
    ]
)
_KNOWN: dict[str, frozenset[str]] = {
    "object": frozenset(["properties", "required", "additionalProperties"]),
    "array": frozenset(["items", "minItems", "maxItems"]),
    "string": frozenset(["minLength", "maxLength"]),
    "integer": frozenset(),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}
_BASE = r"""
space ::= | " " | "\n"{1,2} [ \t]{0,20}
char ::= [^"\\\x7F\x00-\x1F] | [\\] (["\\bfnrt] | "u" [0-9a-fA-F]{4})
integral ::= [0] | [1-9] [0-9]{0,15}
string ::= "\"" char* "\"" space
integer ::= "-"? integral space
number ::= "-"? integral ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})? space
boolean ::= ("true" | "false") space
null ::= "null" space
value ::= object | array | string | number | boolean | null
object ::= "{" space (string ":" space value ("," space string ":" space value)*)? "}" space
array ::= "[" space (value ("," space value)*)? "]" space
""".strip()
# A schema's own nesting; deeper ones are refused, recursion through $ref is not nesting.
MAX_DEPTH = 64


class UnsupportedSchemaError(Exception):
    """The schema has something that GBNF cannot express; the text names it."""


def to_grammar(schema: Any) -> str:
    """A grammar for the JSON texts that a schema allows.

    Objects get their properties in the order of the schema, the required ones first, and no others
    unless `additionalProperties` allows them.

    Raises:
        UnsupportedSchemaError: the schema has a keyword that is not known here.
    """
    writer = _Writer(schema)
    root = writer.visit(schema, 0)
    return "\n".join([f"root ::= {root}", *writer.rules, _BASE]) + "\n"


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _constant(value: Any) -> str:
    return f"{_literal(json.dumps(value, ensure_ascii=False))} space"


def _count(schema: Mapping[str, Any], key: str) -> int | None:
    value = schema.get(key)
    if value is not None and (not isinstance(value, int) or value < 0):
        raise UnsupportedSchemaError(f"{key}: {value!r}")
    return value


class _Writer:
    def __init__(self, document: Any) -> None:
        self._document = document
        self._refs: dict[str, str] = {}
        self.rules: list[str] = []

    def visit(self, schema: Any, depth: int) -> str:
        """The expression for one schema; adds the rules it needs."""
        if depth > MAX_DEPTH:
            raise UnsupportedSchemaError(f"more than {MAX_DEPTH} levels")
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise UnsupportedSchemaError(f"{schema!r} is no schema")
        said = {key: value for key, value in schema.items() if key not in _NOTES}
        if not said:
            return "value"
        if "$ref" in said:
            return self._reference(said, depth)
        if "const" in said:
            return self._rule(_constant(said["const"]))
        if "enum" in said:
            return self._rule(" | ".join(_constant(value) for value in _list(said, "enum")))
        for key in ("anyOf", "oneOf", "allOf"):
            if key in said:
                return self._alternatives(key, said, depth)
        return self._typed(said, depth)

    def _rule(self, body: str, name: str = "") -> str:
        name = name or f"r{len(self.rules)}"
        self.rules.append(f"{name} ::= {body}")
        return name

    def _reference(self, schema: Mapping[str, Any], depth: int) -> str:
        target = schema["$ref"]
        if len(schema) > 1 or not isinstance(target, str) or not target.startswith("#"):
            raise UnsupportedSchemaError(f"$ref: {target!r}")
        if target not in self._refs:
            # Named before it is written: it may refer to itself.
            self._refs[target] = f"ref{len(self._refs)}"
            found = self._document
            for step in filter(None, target[1:].split("/")):
                step = step.replace("~1", "/").replace("~0", "~")
                if not isinstance(found, Mapping) or step not in found:
                    raise UnsupportedSchemaError(f"$ref: {target!r} leads nowhere")
                found = found[step]
            self._rule(self.visit(found, depth + 1), self._refs[target])
        return self._refs[target]

    def _alternatives(self, key: str, schema: Mapping[str, Any], depth: int) -> str:
        choices = _list(schema, key)
        if set(schema) - {key, "type"} or (key == "allOf" and len(choices) > 1):
            raise UnsupportedSchemaError(f"{key} together with other keywords")
        return self._rule(" | ".join(self.visit(choice, depth + 1) for choice in choices))

    def _typed(self, schema: Mapping[str, Any], depth: int) -> str:
        kinds = schema.get("type")
        if kinds is None:
            kinds = next((kind for kind, keys in _KNOWN.items() if keys & schema.keys()), None)
        names = kinds if isinstance(kinds, list) else [kinds]
        written = []
        allowed = {"type"}
        for name in names:
            if name not in _KNOWN:
                raise UnsupportedSchemaError(f"type {name!r}")
            allowed |= _KNOWN[name]
            written.append(self._one(name, schema, depth))
        if unknown := sorted(set(schema) - allowed):
            raise UnsupportedSchemaError(", ".join(unknown))
        return written[0] if len(written) == 1 else self._rule(" | ".join(written))

    def _one(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        low, high = _count(schema, "minLength"), _count(schema, "maxLength")
        if kind == "string" and (low or high is not None):
            return self._rule(
                f'"\\"" char{{{low or 0},{"" if high is None else high}}} "\\"" space'
            )
        return kind

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        item = self.visit(schema.get("items", True), depth + 1)
        low, high = _count(schema, "minItems") or 0, _count(schema, "maxItems")
        if high == 0:
            return self._rule('"[" space "]" space')
        more = f"{{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
        body = f'{item} ("," space {item}){more}'
        return self._rule(f'"[" space {body if low else f"({body})?"} "]" space')

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        properties = schema.get("properties", {})
        more = schema.get("additionalProperties", not properties)
        required = set(schema.get("required", ()))
        if not isinstance(properties, Mapping) or required - set(properties):
            raise UnsupportedSchemaError("required names that are not among the properties")
        pairs = {
            name: self._rule(f'{_constant(name)} ":" space {self.visit(inner, depth + 1)}')
            for name, inner in properties.items()
        }
        needed = [pair for name, pair in pairs.items() if name in required]
        optional = [pair for name, pair in pairs.items() if name not in required]
        if more is not False:
            extra = self._rule(f'string ":" space {self.visit(more, depth + 1)}')
            optional.append(self._rule(f'{extra} ("," space {extra})*'))
        body = ' "," space '.join(needed)
        if rest := self._optional(optional):
            body = f'{body} ("," space {rest})?' if needed else f"({rest})?"
        return self._rule(f'"{{" space {body} "}}" space')

    def _optional(self, pairs: list[str]) -> str:
        """Any of the pairs, in their order, at least one."""
        rest = ""
        for pair in reversed(pairs):
            # Either this one and perhaps what follows, or what follows alone.
            alone = f'{pair} ("," space {rest})?' if rest else pair
            rest = self._rule(f"{alone} | {rest}" if rest else alone)
        return rest


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema[key]
    if not isinstance(value, list) or not value:
        raise UnsupportedSchemaError(f"{key}: {value!r}")
    return value
