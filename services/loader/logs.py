"""What backends write: a bounded history a model, with sequence numbers, that can be followed."""

from __future__ import annotations

import asyncio
import codecs
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import Enum

MAXIMUM_LINE = 8 * 1024
"""Characters; a longer line is cut into several, so that one of megabytes cannot fill the memory."""

_BATCH = 256
"""Lines handed to a reader at once."""


class Stream(Enum):
    """Where a line comes from."""

    STDOUT = "stdout"
    STDERR = "stderr"
    LOADER = "loader"


@dataclass(slots=True)
class LogLine:
    """One line; not frozen, as a frozen one takes twice as long to make, and a flood makes millions."""

    sequence: int
    time: float
    """Seconds since the epoch."""
    stream: Stream
    text: str
    generation: int


class LogBook:
    """The last lines of one model, over restarts of its backend."""

    def __init__(self, capacity: int) -> None:
        """Keep at most `capacity` lines."""
        self._lines: deque[LogLine] = deque(maxlen=capacity)
        self._last = 0
        self._changed = asyncio.Event()

    def append(self, stream: Stream, text: str, generation: int) -> None:
        """Add a line and wake those who follow."""
        self.extend(stream, [text], generation)

    def extend(self, stream: Stream, texts: Sequence[str], generation: int) -> None:
        """Add lines that came together, and wake those who follow once."""
        now = time.time()
        if (superfluous := len(texts) - (self._lines.maxlen or 0)) > 0:
            # They would be pushed out again at once; the jump in the numbers tells of them.
            self._last += superfluous
            texts = texts[superfluous:]
        for text in texts:
            for start in range(0, max(len(text), 1), MAXIMUM_LINE):
                self._last += 1
                piece = text[start : start + MAXIMUM_LINE]
                self._lines.append(LogLine(self._last, now, stream, piece, generation))
        self._changed.set()
        self._changed = asyncio.Event()

    def tail(self, count: int, *, generation: int, stream: Stream) -> list[str]:
        """Return the last non-empty lines of one stream of one instance, oldest first."""
        found: list[str] = []
        for line in reversed(self._lines):
            if line.generation == generation and line.stream is stream and line.text.strip():
                found.append(line.text.rstrip())
                if len(found) == count:
                    break
        return found[::-1]

    async def read(self, *, after: int, tail: int, follow: bool) -> AsyncGenerator[LogLine, None]:
        """Yield the lines after a sequence number, at most `tail` of history if not 0; then follow.

        A reader that is slower than the backend misses lines, and sees it by a jump in the numbers.
        """
        if after > self._last:
            after = 0  # a number of before the loader's restart
        history = [line for line in self._lines if line.sequence > after]
        if tail:
            history = history[-tail:]
        position = self._last
        for line in history:
            yield line
        while follow:
            changed = self._changed
            fresh = self._after(position)
            if not fresh:
                await changed.wait()
            for line in fresh:
                position = line.sequence
                yield line

    def _after(self, position: int) -> list[LogLine]:
        missed = self._last - position
        if missed <= 0:
            return []
        newest = min(missed, len(self._lines))
        start = len(self._lines) - newest
        return [self._lines[index] for index in range(start, min(start + _BATCH, len(self._lines)))]


class LineSplitter:
    """Turns the chunks of a pipe into lines. Bytes that are not UTF-8 are replaced."""

    def __init__(self) -> None:
        """Begin at the start of a line."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, chunk: bytes) -> list[str]:
        """Return the lines that are complete now; an empty chunk ends the input."""
        text = self._rest + self._decoder.decode(chunk, final=not chunk)
        # Progress bars rewrite their line with a carriage return: each state is a line of its own.
        *lines, self._rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if not chunk or len(self._rest) > MAXIMUM_LINE:
            if self._rest:
                lines.append(self._rest)
            self._rest = ""
        return lines
