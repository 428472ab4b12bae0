"""Errors in a model's configuration; each message names the file, the line and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from services.common.errors import FieldViolation, ModelConfigError
from services.common.syntax_errors import TextSyntaxError

from .source_lines import Lines, Part, key_above

_SHOWN = 40
"""Characters of a wrong value to repeat."""

_WORDS: Final[Mapping[str, str]] = {
    "int_type": "is not a whole number; write one such as 4096",
    "int_parsing": "is not a whole number; write one such as 4096",
    "int_from_float": "is not a whole number; write one such as 4096",
    "float_type": "is not a number; write one such as 0.5",
    "float_parsing": "is not a number; write one such as 0.5",
    "bool_type": "is neither true nor false; write one of them",
    "bool_parsing": "is neither true nor false; write one of them",
    "string_type": "is not a text; write one, in quotes",
    "list_type": "is not a list; write each item on a line of its own, after `- `",
    "dict_type": "is not a map; write `name: value` on indented lines of their own",
    "model_type": "is not a map; write `name: value` on indented lines of their own",
}


class UnreadableConfigError(ModelConfigError):
    """The file's content is not a configuration at all; it may be half written."""


def unreadable(file: str, why: str) -> ModelConfigError:
    """Return the error for a file that cannot be read at all."""
    return ModelConfigError(f"{file}: {why}")


def not_yaml(file: str, part: Part, error: Exception) -> ModelConfigError:
    """Return the error for a text that is not valid YAML, with its line and, if known, the key."""
    if (bad := _bad_bytes(part.content)) is not None:
        line = part.first_line + part.content.count(b"\n", 0, bad.start)
        return UnreadableConfigError(
            f"{file}, line {line}: is not UTF-8; save the file in that encoding"
        )
    if isinstance(error, RecursionError):
        return UnreadableConfigError(f"{file}: is nested too deep; no configuration needs that")
    if not isinstance(error, TextSyntaxError):
        return UnreadableConfigError(f"{file}: is not YAML: {error}")
    if error.line is None:
        return UnreadableConfigError(f"{file}: {error}")
    key = key_above(part.content.decode("utf-8", "replace"), error.line)
    near = f", {key}" if key else ""
    message = f"is not YAML: {error.problem} (column {error.column}); {error.remedy}"
    return UnreadableConfigError(
        f"{file}, line {part.first_line + error.line - 1}{near}: {message}",
        violations=[FieldViolation(key or file, message)],
    )


def _bad_bytes(content: bytes) -> UnicodeDecodeError | None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error
    return None


def not_a_map(file: str, line: int) -> ModelConfigError:
    """Return the error for a document that is no map of settings."""
    return UnreadableConfigError(
        f"{file}, line {line}: must be a map of settings, or a list of such maps;"
        " write `name: value` on lines of their own"
    )


def wrong_fields(
    file: str, part: Part, position: int | None, error: ValidationError
) -> ModelConfigError:
    """Return the error that names each wrong field with its line."""
    try:
        lines: Lines | None = Lines(part, position)
    except (ValueError, RecursionError):
        lines = None  # it was readable a moment ago; the fields are named all the same
    texts, violations = [], []
    for problem in error.errors(include_url=False):
        field = ".".join(str(step) for step in problem["loc"])
        where = f"line {lines.of(problem['loc'])}, " if lines is not None else ""
        description = _description(problem)
        texts.append(f"{where}{field}: {description}")
        violations.append(FieldViolation(field, f"{description} ({where}{file})"))
    return ModelConfigError(f"{file}, {'; '.join(texts)}", violations=violations)


def _description(problem: Any) -> str:
    kind, value = problem["type"], problem["input"]
    shown = str(getattr(value, "written", "")) or repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."
    if kind in _WORDS:
        return f"{shown} {_WORDS[kind]}"
    limits = problem.get("ctx", {})
    if kind == "greater_than_equal":
        return f"{shown} is too small; the smallest is {limits['ge']}"
    if kind == "less_than_equal":
        return f"{shown} is too large; the largest is {limits['le']}"
    return str(problem["msg"]).removeprefix("Value error, ")
