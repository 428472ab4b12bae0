"""Cutting the output of a process into lines."""

from __future__ import annotations

import codecs
import re

_ENDED = re.compile(r"([^\r\n]*)([\r\n])")


def cut(text: str, maximum: int) -> list[str]:
    """Return a line in pieces of at most `maximum` characters."""
    return [text[at : at + maximum] for at in range(0, max(len(text), 1), maximum)]


class LineSplitter:
    """Cuts the bytes read from a pipe into lines, the same ones wherever one read ends.

    Bytes that are not UTF-8 are replaced. A progress bar rewrites its line with carriage returns: each
    state becomes a line of its own. Escape sequences are kept.
    """

    def __init__(self, maximum: int) -> None:
        """`maximum`: characters of an unfinished line to keep; beyond that it is cut into several."""
        self._maximum = maximum
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._returned = False
        """The last character was a carriage return that ended a state."""

    def feed(self, chunk: bytes) -> list[str]:
        """Return the lines that are now complete; an empty chunk ends the input."""
        text = self._rest + self._decoder.decode(chunk, final=not chunk)
        if self._returned or "\r" in text:
            lines = self._with_returns(text)
        else:
            *lines, self._rest = text.split("\n")
        if len(self._rest) >= self._maximum:
            *whole, self._rest = cut(self._rest, self._maximum)
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
