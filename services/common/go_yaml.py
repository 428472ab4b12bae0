"""YAML as Go's yaml.v3 reads it, which is what LocalAI's files are written for.

PyYAML follows YAML 1.1 where Go follows 1.2 or its own rules, and then either refuses what LocalAI
accepts or reads something else: `on` is a text unless a boolean is expected, `1e6` is a number, `2024-01-01` and `=`
are texts, an unknown tag is ignored, `\\'` is a quote, and of several documents the first one counts. A
number keeps the text that it was written as: `0.50` stays `0.50`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from services.common.syntax_errors import yaml_errors

_BOOL = "tag:yaml.org,2002:bool"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"

_RESOLVERS = (
    (_BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (_INT, r"[-+]?(0[xX][0-9a-fA-F_]+|0[oO]?[0-7_]+|0[bB][01_]+|0|[1-9][0-9_]*)", "-+0123456789"),
    (
        _FLOAT,
        (
            r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        "-+.0123456789",
    ),
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_MERGE, r"<<", "<"),
)


class WrittenInt(int):
    """An integer with the text that it was written as."""

    written: str


class WrittenFloat(float):
    """A floating-point number with the text that it was written as."""

    written: str


class _GoRules:
    """The resolvers and constructors that both loaders below share."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML looks it up on the class


def _integer(text: str) -> WrittenInt:
    digits = text.replace("_", "")
    sign, digits = ("-", digits[1:]) if digits.startswith("-") else ("", digits.lstrip("+"))
    octal = len(digits) > 1 and digits[0] == "0" and digits.isdecimal()
    try:
        number = WrittenInt(f"{sign}{digits}", 8 if octal else 0)
    except ValueError:  # no digits, or too many
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        raise ValueError(f"{shown!r} is not a number; put it into quotes") from None
    number.written = text
    return number


def _floating(text: str) -> WrittenFloat:
    digits = text.replace("_", "")
    number = WrittenFloat(re.sub(r"\.(inf|nan)$", r"\1", digits.lower()))
    number.written = text
    return number


def _construct_int(loader: Any, node: Any) -> WrittenInt:
    return _integer(loader.construct_scalar(node))


def _construct_float(loader: Any, node: Any) -> WrittenFloat:
    return _floating(loader.construct_scalar(node))


def _construct_any(loader: Any, suffix: str, node: Any) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


for _tag, _pattern, _first in _RESOLVERS:
    for _letter in _first:
        _GoRules.yaml_implicit_resolvers.setdefault(_letter, []).append(
            (_tag, re.compile(f"(?:{_pattern})\\Z"))
        )


class _Tolerant(_GoRules, yaml.SafeLoader):
    """For the few files with an escape that only Go knows; about 8 times slower."""

    ESCAPE_REPLACEMENTS = {**yaml.SafeLoader.ESCAPE_REPLACEMENTS, "'": "'"}  # type: ignore[misc]  # noqa: RUF012


# libyaml is about 8 times faster than the Python parser; it is optional.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Quick(_GoRules, _Base):  # type: ignore[misc]
    """For all other files."""


for _loader in (_Quick, _Tolerant):
    _loader.add_constructor(_INT, _construct_int)
    _loader.add_constructor(_FLOAT, _construct_float)
    _loader.add_multi_constructor("", _construct_any)


def first_document(content: str | bytes) -> Any:
    """Return the first document of a YAML text, None if there is none. Raises TextSyntaxError, ValueError."""
    with yaml_errors(content):
        try:
            return _build(content)
        except _UnusualError:
            return _load(_Quick, content)
        except yaml.YAMLError as error:
            if not _has_unknown_escape(error):
                raise
            return _load(_Tolerant, content)


def first_node(content: str | bytes) -> yaml.Node | None:
    """Return the same document as nodes with line numbers; about 3 times slower. Raises as above."""
    with yaml_errors(content):
        try:
            return _compose(_Quick, content)
        except yaml.YAMLError as error:
            if not _has_unknown_escape(error):
                raise
            return _compose(_Tolerant, content)


def _has_unknown_escape(error: yaml.YAMLError) -> bool:
    return "unknown escape character" in str(error)


def _reads_as_text(text: str) -> bool:
    """Whether an unquoted text in a file is read as a text, and not as a number, a boolean or null."""
    candidates = _GoRules.yaml_implicit_resolvers.get(text[:1], ())
    return not any(pattern.match(text) for _, pattern in candidates)


def dump(value: Any) -> str:
    """Return plain data as YAML that Go and PyYAML read alike: keys in order, no anchors or aliases."""
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=120,
    )
    return text


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    # Quoted if Go would read it as something else, whatever YAML 1.1 defines.
    if style is None and not _reads_as_text(value):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)


def as_written(value: object) -> str | None:
    """Return the text of a number or a boolean as it was written; None for other values."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(getattr(value, "written", value))
    return None


def _load(kind: Any, content: str | bytes) -> Any:
    loader = kind(content)
    try:
        return loader.get_data()
    finally:
        loader.dispose()


def _compose(kind: Any, content: str | bytes) -> yaml.Node | None:
    loader = kind(content)
    try:
        # The C parser's get_node fails on a text without a document.
        return loader.get_node() if loader.check_node() else None
    finally:
        loader.dispose()


# PyYAML builds nodes and then values from them, both in Python. Most files use neither tags nor merges:
# for them, building the values directly from the parser's events takes half the time.


class _UnusualError(Exception):
    """The text needs PyYAML's own constructors."""


def _build(content: str | bytes) -> Any:
    loader = _Quick(content)
    try:
        next_event = loader.get_event
        while True:
            event = next_event()
            if isinstance(event, yaml.DocumentStartEvent):
                value = _value(next_event(), next_event, {})
                next_event()  # the document's end; the text after it may not be YAML
                return value
            if isinstance(event, yaml.StreamEndEvent):
                return None
    finally:
        loader.dispose()


def _value(event: Any, next_event: Callable[[], Any], anchors: dict[str, Any]) -> Any:
    kind = type(event)
    if kind is yaml.AliasEvent:
        if event.anchor not in anchors:
            raise _UnusualError  # PyYAML's own error is better
        return anchors[event.anchor]
    if event.tag is not None and event.tag != "!":
        raise _UnusualError
    if kind is yaml.ScalarEvent:
        value = _plain(event.value) if event.implicit[0] else event.value
        if event.anchor:
            anchors[event.anchor] = value
        return value
    if kind is yaml.MappingStartEvent:
        return _mapping(event.anchor, next_event, anchors)
    items: list[Any] = []
    if event.anchor:
        anchors[event.anchor] = items
    while type(item := next_event()) is not yaml.SequenceEndEvent:
        items.append(_value(item, next_event, anchors))
    return items


def _mapping(
    anchor: str | None, next_event: Callable[[], Any], anchors: dict[str, Any]
) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    if anchor:
        anchors[anchor] = mapping
    while type(event := next_event()) is not yaml.MappingEndEvent:
        key = _value(event, next_event, anchors)
        if type(key) in (dict, list) or (key == "<<" and event.implicit[0]):
            raise _UnusualError
        mapping[key] = _value(next_event(), next_event, anchors)
    return mapping


def _plain(text: str) -> Any:
    candidates = _GoRules.yaml_implicit_resolvers.get(text[:1])
    if candidates is None:
        return text
    for tag, pattern in candidates:
        if pattern.match(text):
            return _PLAIN[tag](text)
    return text


def _merge(text: str) -> str:
    return text


_PLAIN: dict[str, Callable[[str], Any]] = {
    _BOOL: lambda text: text[0] in "tT",
    _INT: _integer,
    _FLOAT: _floating,
    _NULL: lambda _: None,
    _MERGE: _merge,
}
