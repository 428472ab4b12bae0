"""Numbers and times as people read them."""

from __future__ import annotations

from typing import Final

from services.common.human_size import size_in_words as size

__all__ = ["clip", "duration", "plural", "printable", "size", "span"]

# They show text in another order than it has. Other unprintable characters only join letters.
_REORDERING: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def duration(seconds: float) -> str:
    """Return a time span: 4 ms, 0.35 s, 12.3 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 0.1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return span(seconds)


def span(seconds: float) -> str:
    """Return a longer time span in its two largest units: 8 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two(whole, 60, "min", 1, "s")
    if whole < 86400:
        return _two(whole, 3600, "h", 60, "min")
    return _two(whole, 86400, "d", 3600, "h")


def clip(text: str, limit: int) -> str:
    """Return one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def plural(count: int, word: str) -> str:
    """Return `1 model`, `2 models`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def printable(text: str) -> str:
    """Return the text without what would steer a terminal; tabs and line ends stay.

    What models and backends write comes from outside: an escape sequence in it could rewrite the
    screen or the window's title.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _visible(c) for c in text)


def _visible(char: str) -> str:
    if char == "\r":
        return ""
    steers = ord(char) < 0xA0 or char in _REORDERING
    return char.encode("unicode_escape").decode("ascii") if steers else char


def _two(whole: int, large: int, first: str, small: int, second: str) -> str:
    major, rest = divmod(whole, large)
    minor = rest // small
    return f"{major} {first} {minor} {second}" if minor else f"{major} {first}"
