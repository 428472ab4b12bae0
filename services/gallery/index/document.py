"""YAML documents of galleries, read leniently into plain data."""

from __future__ import annotations

import datetime
from typing import Any, Final

from services.common.go_yaml import first_document
from services.common.syntax_errors import TextSyntaxError

# No real entry comes near: the largest of LocalAI's gallery has some hundred nodes, 8 deep. Aliases
# cost a few bytes each and multiply when they are copied, so copying needs a limit of its own.
_MAX_NODES: Final = 100_000
_MAX_DEPTH: Final = 64


class DocumentError(ValueError):
    """A text is not the expected YAML; the message names the place."""


def parse(text: str) -> Any:
    """Return what a YAML text holds. Raises DocumentError."""
    try:
        return first_document(text)
    except TextSyntaxError as error:
        where = f" in line {error.line}" if error.line is not None else ""
        raise DocumentError(f"not readable as YAML{where}: {error.problem}") from None
    except UnicodeError:
        raise DocumentError("not readable as YAML: half of a surrogate pair") from None
    except ValueError as error:
        raise DocumentError(f"not readable as YAML: {error}") from None


def parse_mapping(text: str) -> dict[str, Any]:
    """Return a YAML text's top-level map, as plain data; an empty text is an empty map."""
    value = parse(text)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DocumentError(f"holds a {type(value).__name__} where a map is expected")
    return plain_mapping(value)


def plain(value: Any) -> Any:
    """Return a deep copy made of dict, list, str, int, float, bool and None only.

    Nothing of it is shared with the original or within itself. Raises DocumentError when it is nested
    or multiplied (by aliases) beyond the limits.
    """
    budget = [_MAX_NODES]
    return _plain(value, budget, 0)


def plain_mapping(value: Any) -> dict[str, Any]:
    """Return `plain(value)` of a map."""
    copied = plain(value)
    if not isinstance(copied, dict):
        raise DocumentError(f"holds a {type(value).__name__} where a map is expected")
    return copied


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth > _MAX_DEPTH:
        raise DocumentError("nested too deep, or too large once its aliases are written out")
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        # What was read remembers how it was written; what is written again need not.
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, dict):
        return {_key(k): _plain(v, budget, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item, budget, depth + 1) for item in value]
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    return str(value)


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)
