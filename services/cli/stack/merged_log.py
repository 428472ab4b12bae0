"""One log of many processes: each line with the name of the process that wrote it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Final, TextIO

from services.cli.display.text import printable

LONGEST_LINE: Final = 64 * 1024
"""Characters; a longer line is cut into several, so that one process cannot fill the memory."""
_COLOURS: Final = {"loader": "36", "gallery": "35", "monitor": "34", "metrics": "32", "corral": "1"}
_LEVEL: Final = re.compile(r"\[(error|critical|warning)\s*\]")
_STAMP: Final = re.compile(r"^\d{4}-\d\d-\d\dT(\d\d:\d\d:\d\d)\.\d+Z")
_LEVEL_COLOURS: Final = {"error": "31", "critical": "31", "warning": "33"}
_WIDTH: Final = 7


class MergedLog:
    """Writes lines to one stream: prefixed for people, or as JSON lines for programs."""

    def __init__(self, stream: TextIO, *, as_json: bool, colours: bool) -> None:
        """`stream` gets the lines."""
        self._stream = stream
        self._as_json = as_json
        self._colours = colours
        self._broken = False

    def write(self, name: str, line: str, *, level: str = "info") -> None:
        """Write one line that `name` wrote. A closed log is ignored."""
        if self._broken:
            return
        text = self._json(name, line, level) if self._as_json else self._console(name, line)
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._broken = True

    def _json(self, name: str, line: str, level: str) -> str:
        if line.startswith("{") and line.endswith("}"):
            return line
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        fields = {"level": level, "timestamp": now, "service": name, "message": line}
        return json.dumps(fields, ensure_ascii=False)

    def _console(self, name: str, line: str) -> str:
        # The prefix has the name already.
        line = printable(line).replace(f" service={name}", "", 1)
        if not self._colours:
            return f"{name:<{_WIDTH}} | {line}"
        # A reader of a live log needs no date, and the line fits the screen better.
        line = _STAMP.sub("\x1b[2m\\1\x1b[0m", line, count=1)
        if match := _LEVEL.search(line):
            start, end = match.span()
            colour = _LEVEL_COLOURS[match.group(1)]
            line = f"{line[:start]}\x1b[{colour}m{match.group()}\x1b[0m{line[end:]}"
        return f"\x1b[{_COLOURS.get(name, '0')}m{name:<{_WIDTH}}\x1b[0m \x1b[2m|\x1b[0m {line}"
