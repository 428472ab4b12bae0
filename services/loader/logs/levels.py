"""The severity of a line of a backend's log, as far as the line itself shows it.

Backends log as their languages do, so this knows the forms of Python's logging, loguru, glog, zap
and zerolog, env_logger, spdlog, logfmt, JSON, llama.cpp, and the words of crashes. A line that fits
none has no level; prose that merely mentions an error is not an error.
"""

from __future__ import annotations

import re
from enum import IntEnum


class Level(IntEnum):
    """How serious a line is."""

    UNSPECIFIED = 0
    DEBUG = 1
    INFO = 2
    WARNING = 3
    ERROR = 4


_LONGEST_PREFIX = 160
"""Characters in which a level is looked for; after that comes the message."""

_LONGEST_OBJECT = 1024
"""The same in a line that is a JSON object, whose keys have any order."""

_WORDS = {
    **dict.fromkeys(("trace", "trc", "debug", "dbg", "verbose"), Level.DEBUG),
    **dict.fromkeys(("info", "inf", "notice", "information"), Level.INFO),
    **dict.fromkeys(("warn", "wrn", "warning"), Level.WARNING),
    **dict.fromkeys(
        (
            *("error", "err", "eror", "critical", "crit", "fatal", "ftl", "panic", "pnc"),
            *("alert", "emerg", "emergency", "severe", "dpanic"),
        ),
        Level.ERROR,
    ),
}
_LETTERS = {
    "D": Level.DEBUG,
    "T": Level.DEBUG,
    "V": Level.DEBUG,
    "I": Level.INFO,
    "W": Level.WARNING,
    "E": Level.ERROR,
    "F": Level.ERROR,
    "C": Level.ERROR,
}
# Pino's and Bunyan's numbers: 10 is trace, 60 fatal.
_NUMBERS = {1: Level.DEBUG, 2: Level.DEBUG, 3: Level.INFO, 4: Level.WARNING}

_ANY = "|".join(sorted(_WORDS, key=len, reverse=True))

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_JSON = re.compile(
    r'"(?:level|lvl|severity|levelname|log\.level|loglevel|@level)"\s*:\s*"?(\w+)', re.IGNORECASE
)
_LOGFMT = re.compile(rf'\b(?:level|lvl|severity|loglevel)=["\']?({_ANY})\b', re.IGNORECASE)
# E0102 03:04:05.678901 of glog and klog.
_GLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d")
# "E text" and "W: text"; llama.cpp puts a clock before it. "I text" alone is how a sentence begins.
_LETTER = re.compile(r"(?:(\d+\.\d\d\.\d\d\d\.\d\d\d )([DTIWEF])|([DWEF])):? ")
# Capitals, set apart on both sides: INFO:root:x, 12:00 | ERROR | x, [WARN] x.
_CAPITALS = re.compile(r"(?<![\w.=\"'-])[A-Z]{3,11}(?=[\]\s:)>|,]|$)")
_PROSE = re.compile(r"(?<![\w.])[a-z]{2,} [a-z]{2,}(?![\w.])")
_BRACKETS = re.compile(rf"[\[<(|]\s*({_ANY})\s*[\])>|]", re.IGNORECASE)
# "error: x" or "main.cpp:7: warning: x" at the beginning, after the names of places at most.
_COLON = re.compile(
    rf"(?:[\w./\\()<>~+-]+(?::\d+)*:\s+|\[[^\]]*\]:?\s*){{0,3}}(?:fatal )?({_ANY})(?:\[\w+\])?:",
    re.IGNORECASE,
)
_FAILURE = re.compile(
    r"(?:[\w./:<>~]+: )?(?:"
    r"error |failed to |fatal |GGML_ASSERT|CUDA error|terminate called|Segmentation fault|Aborted\b"
    r"|Traceback \(most recent call last\)|panic: |thread '.*' panicked|goroutine \d+ \[|Killed\b"
    r"|[\w.]*(?:Error|Exception|KeyboardInterrupt|Interrupt)(?::|$)"
    r")"
    r'|  File ".*", line \d'
)


def plain(text: str) -> str:
    """Return the text without the escape sequences that colour it or steer a terminal."""
    return _ESCAPE.sub("", text) if "\x1b" in text else text


def level_of(text: str) -> Level:
    """Return how serious the line is."""
    text = plain(text[:_LONGEST_OBJECT])
    if _FAILURE.match(text):
        return Level.ERROR
    text = text.lstrip()
    if text.startswith("{"):
        found = _JSON.search(text)
        return _named(found.group(1)) if found else Level.UNSPECIFIED
    text = text[:_LONGEST_PREFIX]
    if found := _GLOG.match(text):
        return _LETTERS[found.group(1)]
    if found := _LETTER.match(text):
        return _LETTERS[found.group(2) or found.group(3)]
    if "=" in text and (found := _LOGFMT.search(text)):
        return _named(found.group(1))
    for found in _CAPITALS.finditer(text):
        if level := _named(found.group()):
            if not _PROSE.search(text, 0, found.start()):
                return level
            break
    if (found := _COLON.match(text)) or (found := _BRACKETS.search(text)):
        return _named(found.group(1))
    return Level.UNSPECIFIED


def _named(word: str) -> Level:
    if word.isdecimal():
        number = int(word) // 10
        return _NUMBERS.get(number, Level.ERROR if number > 4 else Level.UNSPECIFIED)
    return _WORDS.get(word.lower(), Level.UNSPECIFIED)
