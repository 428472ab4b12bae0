"""Reading the kernel's small status files; any of them may be missing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_DIGITS: Final = 20
"""No 64-bit number has more."""


def read_text(path: Path) -> str:
    """Return a file's text; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def read_number(path: Path) -> int | None:
    """Return the plain number that a file holds; None for `max`, for any other text, and for no file."""
    return parse_number(read_text(path))


def parse_number(text: str) -> int | None:
    """Return a plain number; None for any other text."""
    text = text.strip()
    return int(text) if len(text) <= _DIGITS and text.isascii() and text.isdigit() else None
