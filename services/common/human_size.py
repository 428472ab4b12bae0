"""Sizes for people. Light to import: the command line's help needs it."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def size_in_words(size: float) -> str:
    """Return a number of bytes with at most three digits: 512 B, 9.5 MiB, 104 MiB."""
    value = float(size)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1024
    if unit == "B" or value >= 99.95:
        return f"{value:.0f} {unit}"
    return f"{value:.1f} {unit}"
