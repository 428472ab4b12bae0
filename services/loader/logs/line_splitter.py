"""From what a pipe brings to lines."""

from __future__ import annotations

import codecs
import re

MAXIMUM_LINE = 8 * 1024
"""Characters; a longer line is cut into several, so that one of megabytes cannot fill the memory."""

_ENDED = re.compile(r"([^\r\n]*)([\r\n])")


def cut(text: str) -> list[str]:
    """Return a line as it is, or in pieces if it is too long."""
    return [text[at : at + MAXIMUM_LINE] for at in range(0, max(len(text), 1), MAXIMUM_LINE)]


class LineSplitter:
    """Turns the chunks of a pipe into lines, the same ones wherever the chunks are cut.

    Bytes that are not UTF-8 are replaced. A progress bar rewrites its line with carriage returns: each
    state is a line of its own. Escape sequences stay.
    """

    def __init__(self) -> None:
        """Begin at the start of a line."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._returned = False
        """The last character was a carriage return that ended a state."""

    def feed(self, chunk: bytes) -> list[str]:
        """Return the lines that are complete now; an empty chunk ends the input."""
        text = self._rest + self._decoder.decode(chunk, final=not chunk)
        if self._returned or "\r" in text:
            lines = self._with_returns(text)
        else:
            *lines, self._rest = text.split("\n")
        if len(self._rest) >= MAXIMUM_LINE:
            *whole, self._rest = cut(self._rest)
            lines += whole
        if not chunk:
            lines += [self._rest] if self._rest else []
            self._rest = ""
        return lines

    def _with_returns(self, text: str) -> list[str]:
        lines = []
        end = 0
        for found in _ENDED.finditer(text):
            state, ending = found.groups()
            end = found.end()
            if ending == "\n":
                # "\r\n" ends one line, not two.
                if state or not self._returned:
                    lines.append(state)
                self._returned = False
            elif state:
                lines.append(state)
                self._returned = True
            else:
                self._returned = False
        self._rest = text[end:]
        if self._rest:
            self._returned = False
        return lines
