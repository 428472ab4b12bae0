"""YAML as LocalAI's galleries write it: read leniently, written so that every YAML library reads it."""

from __future__ import annotations

import datetime
import re
from typing import Any, ClassVar, Final

import yaml

# No real entry comes near: the largest of LocalAI's gallery has some hundred nodes, 8 deep. Aliases
# cost a few bytes each and multiply when they are copied, so copying needs a limit of its own.
_MAX_NODES: Final = 100_000
_MAX_DEPTH: Final = 64

# YAML 1.1, which PyYAML follows, takes 1e-5 for text and 1:30 for a number; YAML 1.2, which the
# galleries are written for, has it the other way round.
_FLOAT: Final = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_INT: Final = re.compile(r"[-+]?[0-9][0-9_]*$|0o[0-7]+$|0x[0-9a-fA-F]+$")
_NUMERIC: Final = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:int")


class DocumentError(ValueError):
    """A text is not the YAML that was expected; the message says where."""


class _Rules:
    """What both loaders share: numbers as in YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[Any] = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag not in _NUMERIC]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Fast(_Rules, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml where PyYAML has it: ten times faster on a large index."""


class _Lenient(_Rules, yaml.SafeLoader):
    r"""Takes the escape \' in double quotes, which Go's YAML takes and YAML's grammar does not."""


# Final only in the type stubs; each loader class is meant to be able to have its own.
setattr(_Lenient, "ESCAPE_REPLACEMENTS", {**yaml.SafeLoader.ESCAPE_REPLACEMENTS, "'": "'"})  # noqa: B010


def _number(loader: Any, node: Any) -> Any:
    text = str(loader.construct_scalar(node)).replace("_", "")
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.lstrip("+"))
    base = {"0x": 16, "0o": 8}.get(digits[:2].lower(), 10)
    return sign * int(digits[2:] if base != 10 else digits, base)


def _float(loader: Any, node: Any) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


for _loader in (_Fast, _Lenient):
    _loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    _loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    _loader.add_constructor("tag:yaml.org,2002:int", _number)
    _loader.add_constructor("tag:yaml.org,2002:float", _float)


def parse(text: str) -> Any:
    """Return what a YAML text holds. Raises DocumentError."""
    try:
        return yaml.load(text, Loader=_Fast)
    except (yaml.YAMLError, ValueError, RecursionError):
        pass
    try:
        return yaml.load(text, Loader=_Lenient)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or error.__class__.__name__
        raise DocumentError(f"not readable as YAML{where}: {what}") from None


def parse_mapping(text: str) -> dict[str, Any]:
    """Return a YAML text's top-level map, as plain data; an empty text is an empty map."""
    value = parse(text)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DocumentError(f"holds a {type(value).__name__} where a map is expected")
    return plain_mapping(value)


def dump(value: Any) -> str:
    """Return plain data as YAML; keys keep their order, nothing is an anchor or an alias."""
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
    """Writes long texts as blocks, and never an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        """Copy what occurs twice: readers with a simple YAML library exist."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    # A text that YAML 1.2 would read as a number is quoted, whatever YAML 1.1 thinks of it.
    if style is None and (_FLOAT.match(value) or _INT.match(value)):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def plain(value: Any) -> Any:
    """Return a deep copy made of dict, list, str, int, float, bool and None only.

    Nothing of it is shared with the original or within itself. Raises DocumentError when it is nested
    or multiplied (by aliases) beyond any sense.
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
    if value is None or isinstance(value, str | bool | int | float):
        return value
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


__all__ = ["DocumentError", "dump", "parse", "parse_mapping", "plain", "plain_mapping"]
