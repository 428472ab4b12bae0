"""YAML as Go's yaml.v3 reads it, which is what LocalAI's files are written for.

PyYAML follows YAML 1.1 where Go follows 1.2 or its own ways, and then either refuses what LocalAI takes
or reads something else: `on` is a text unless a boolean is wanted, `1e6` is a number, `2024-01-01` and `=`
are texts, an unknown tag is ignored, `\\'` is a quote, and of several documents the first one counts. A
number remembers how it was written, for those who want the text: `0.50` stays `0.50`.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

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
    """An integer that knows how it was written."""

    written: str


class WrittenFloat(float):
    """A floating-point number that knows how it was written."""

    written: str


class _GoRules:
    """What both loaders below have: the resolvers, and constructors for what they resolve to."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML looks it up on the class


def _construct_int(loader: Any, node: Any) -> WrittenInt:
    text = loader.construct_scalar(node)
    digits = text.replace("_", "")
    sign, digits = ("-", digits[1:]) if digits.startswith("-") else ("", digits.lstrip("+"))
    octal = len(digits) > 1 and digits[0] == "0" and digits.isdecimal()
    number = WrittenInt(f"{sign}{digits}", 8 if octal else 0)
    number.written = text
    return number


def _construct_float(loader: Any, node: Any) -> WrittenFloat:
    text = loader.construct_scalar(node)
    digits = text.replace("_", "")
    number = WrittenFloat(re.sub(r"\.(inf|nan)$", r"\1", digits.lower()))
    number.written = text
    return number


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
    """For the few files with an escape that only Go knows: some 8 times slower."""

    ESCAPE_REPLACEMENTS = {**yaml.SafeLoader.ESCAPE_REPLACEMENTS, "'": "'"}  # type: ignore[misc]  # noqa: RUF012


# libyaml is some 8 times faster than the Python parser; a wheel without it still works.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Quick(_GoRules, _Base):  # type: ignore[misc]
    """For all files that it can read."""


for _loader in (_Quick, _Tolerant):
    _loader.add_constructor(_INT, _construct_int)
    _loader.add_constructor(_FLOAT, _construct_float)
    _loader.add_multi_constructor("", _construct_any)


def first_document(content: str | bytes) -> Any:
    """Return the first document of a YAML text, None if there is none. Raises yaml.YAMLError, ValueError."""
    try:
        return _load(_Quick, content)
    except yaml.YAMLError as error:
        if "unknown escape character" not in str(error):
            raise
        return _load(_Tolerant, content)


def reads_as_text(text: str) -> bool:
    """Whether a text that stands in a file without quotes is read as a text, and not as a number or null."""
    candidates = _GoRules.yaml_implicit_resolvers.get(text[:1], ())
    return not any(pattern.match(text) for _, pattern in candidates)


def as_written(value: object) -> str | None:
    """Return the text that a number or a boolean had in the file; None for anything else."""
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
