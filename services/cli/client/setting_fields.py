"""The loader's settings that can be changed while it runs: their names, and how values are typed.

Their meanings come from the loader.
"""

from __future__ import annotations

import difflib
import math
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from corral.loader.v1 import loader_pb2
from services.cli.failures import Failure
from services.common.quantities import format_duration, parse_duration

NAMES: Final = tuple(field.name for field in loader_pb2.Settings.DESCRIPTOR.fields)
_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")
_KINDS: Final = {
    "bool": "true or false",
    "int": "a whole number",
    "duration": "a duration such as 90s or 15m",
    "float": "a number such as 0.8, or 80%",
    "str": "text",
}


def named(name: str) -> str:
    """Return a setting's name in the loader's spelling; fail with the nearest name if there is none."""
    wanted = name.strip().lstrip("-").replace("-", "_").lower()
    if wanted in NAMES:
        return wanted
    near = difflib.get_close_matches(wanted, NAMES, n=1, cutoff=0.5)
    near += [other for other in NAMES if wanted and wanted in other]
    hint = f"did you mean {near[0]}? " if near else ""
    raise Failure(
        f"there is no setting {name!r}",
        f"{hint}list all with `corral settings`",
        exit_code=2,
        reason="INVALID_REQUEST",
    )


def kind(name: str) -> str:
    """Return how a setting's value is typed: bool, int, float, duration or str."""
    value = getattr(loader_pb2.Settings(), name)
    return "duration" if isinstance(value, Duration) else type(value).__name__


def parse(name: str, kind: str, text: str, meaning: str = "") -> Any:
    """Return the value of a typed text; durations in seconds. `meaning` is for the hint."""
    text = text.strip()
    try:
        if kind == "bool":
            if text.lower() not in _TRUE + _FALSE:
                raise ValueError
            return text.lower() in _TRUE
        if kind == "int":
            return _int32(int(text))
        if kind == "duration":
            return parse_duration(text)
        if kind == "float":
            return _finite(float(text[:-1]) / 100 if text.endswith("%") else float(text))
    except ValueError:
        raise Failure(
            f"{name}: {text!r} is not {_KINDS[kind]}",
            f"it means: {meaning}" if meaning else "list all with `corral settings`",
            exit_code=2,
            reason="INVALID_REQUEST",
        ) from None
    return text


def shown(value: Any, kind: str) -> str:
    """Return a value as it is typed."""
    if kind == "duration":
        return format_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _int32(value: int) -> int:
    if not -(2**31) <= value < 2**31:
        raise ValueError
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError
    return value
