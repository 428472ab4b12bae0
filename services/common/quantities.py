"""Parsing and formatting of durations and sizes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

from pydantic import BeforeValidator

_SECONDS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ns|us|µs|ms|s|m|h|d)")
_NUMBER: Final = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_SIZE: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)(b?)", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, slots=True)
class Shown:
    """A marker on an annotated type: its name in `--help` and in the README."""

    name: str


def parse_duration(value: Any) -> float:
    """Return seconds for 1.5, "1.5", "500ms", "15m" or "1h30m" (Go's notation, and days)."""
    if isinstance(value, bool):
        raise ValueError("not a duration; write for example 500ms, 15m or 1h30m")  # noqa: TRY004 - pydantic reports only ValueError
    if isinstance(value, int | float):
        seconds = float(value)
    else:
        text = str(value).strip()
        if _NUMBER.fullmatch(text):
            seconds = float(text)
        else:
            parts = _PART.findall(text)
            if not parts or _PART.sub("", text).strip():
                raise ValueError(
                    f"{text!r} is not a duration; write for example 500ms, 15m or 1h30m"
                )
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("a duration must be zero or more, and finite")
    return seconds


def format_duration(seconds: float) -> str:
    """Return the shortest text that `parse_duration` converts back to the same value."""
    if seconds == 0:
        return "0s"
    if seconds != int(seconds):
        millis = seconds * 1000
        if seconds < 1 and millis == int(millis):
            return f"{int(millis)}ms"
        # Never with an exponent: `parse_duration` does not accept one.
        return f"{seconds!r}s" if "e" not in repr(seconds) else f"{seconds:.9f}s"
    rest, text = int(seconds), ""
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text


def parse_size(value: Any) -> int:
    """Return bytes for 1048576, "1MiB", "50 MB" or "2g"; a single letter means a power of 1024."""
    if isinstance(value, bool):
        raise ValueError("not a size; write for example 50MiB or 2GB")  # noqa: TRY004 - as above
    if isinstance(value, int):
        size = value
    else:
        text = str(value).strip()
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a size; write for example 50MiB or 2GB")
        number, prefix, binary, byte = match.groups()
        # "MB" is a million, as for disks; "MiB" and "M" are powers of 1024, as for memory.
        base = 1000 if prefix and byte and not binary else 1024
        size = round(float(number) * base ** _POWERS[prefix.lower()])
    if size < 0:
        raise ValueError("a size must be zero or more")
    return size


def format_size(size: int) -> str:
    """Return the shortest exact text for a number of bytes."""
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)


Duration: TypeAlias = Annotated[float, BeforeValidator(parse_duration), Shown("duration")]
ByteSize: TypeAlias = Annotated[int, BeforeValidator(parse_size), Shown("size")]
