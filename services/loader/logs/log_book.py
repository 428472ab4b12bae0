"""The backends' output: a bounded history for each model, with sequence numbers, that can be
followed.

Nothing is written to disk. The lines are kept in blocks of columns: a flood brings tens of
thousands a second, and an object for each of them would cost more than reading them from the pipe.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import repeat

from services.common.line_splitter import cut

from .levels import Level, level_of

__all__ = [
    "MAXIMUM_LINE",
    "Level",
    "LogBook",
    "LogLine",
    "LogNews",
    "LogQuery",
    "Stream",
]

MAXIMUM_LINE = 8 * 1024
"""Characters; a longer line is cut into several, so that one of megabytes cannot fill the memory."""
_BLOCK = 256
"""Lines of a block, and lines that a reader checks before others get their turn."""


class Stream(Enum):
    """Where a line comes from."""

    STDOUT = "stdout"
    STDERR = "stderr"
    LOADER = "loader"


@dataclass(slots=True)
class LogLine:
    """One line; not frozen, as a frozen one takes twice as long to make."""

    sequence: int
    time: float
    """Seconds since the epoch."""
    stream: Stream
    text: str
    generation: int
    level: Level = Level.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which lines a reader wants."""

    after: int = 0
    """Only lines with a higher number; one beyond the last is of before the loader's restart."""
    tail: int = 0
    """Maximum lines of history, the newest that match; 0 is all."""
    follow: bool = False
    streams: frozenset[Stream] = frozenset()
    """Empty is all."""
    minimum: Level = Level.UNSPECIFIED
    """Lines without a recognizable level only match UNSPECIFIED."""

    def wants(self, line: LogLine) -> bool:
        """Whether the line matches by its stream and level."""
        return (not self.streams or line.stream in self.streams) and line.level >= self.minimum


@dataclass(slots=True)
class LogNews:
    """What a reader gets: a line and the number it missed before it, or only that number."""

    line: LogLine | None
    missed: int = 0


@dataclass(slots=True)
class _Origin:
    """Properties shared by lines that came together."""

    time: float
    stream: Stream
    generation: int
    level: Level | None
    """None: detected from the line itself."""


class _Block:
    """Lines with consecutive numbers."""

    __slots__ = ("first", "origins", "texts")

    def __init__(self, first: int) -> None:
        self.first = first
        self.texts: list[str] = []
        self.origins: list[_Origin] = []

    def line(self, index: int) -> LogLine:
        text, origin = self.texts[index], self.origins[index]
        level = level_of(text) if origin.level is None else origin.level
        return LogLine(
            self.first + index, origin.time, origin.stream, text, origin.generation, level
        )


_NOTHING: deque[_Block] = deque(maxlen=0)
# What a line costs besides its text: its places in the two columns.
_PLACES = 16


class LogBook:
    """The last lines of one model, over restarts of its backend."""

    __slots__ = ("_blocks", "_bytes", "_changed", "_last", "_lines", "_most_bytes", "_most_lines")

    def __init__(self, most_lines: int, most_bytes: int = sys.maxsize) -> None:
        """The limits are in lines, and in bytes of memory."""
        self._most_lines = most_lines
        self._most_bytes = most_bytes
        # Thousands of models never log a line; even an empty deque takes 600 bytes.
        self._blocks = _NOTHING
        self._lines = 0
        self._bytes = 0
        self._last = 0
        self._changed: asyncio.Event | None = None

    def append(
        self, stream: Stream, text: str, generation: int, level: Level | None = None
    ) -> None:
        """Add a line and wake its followers; without a level, it is detected from the line."""
        self.extend(stream, [text], generation, level)

    def extend(
        self,
        stream: Stream,
        texts: Sequence[str],
        generation: int,
        level: Level | None = None,
    ) -> None:
        """Add lines that came together, and wake their followers once."""
        if max(map(len, texts), default=0) > MAXIMUM_LINE:
            texts = [piece for text in texts for piece in cut(text, MAXIMUM_LINE)]
        if (superfluous := len(texts) - self._most_lines) > 0:
            # They would be pushed out again at once; the jump in the numbers shows that they are
            # missing.
            self._blocks.clear()
            self._lines = self._bytes = 0
            self._last += superfluous
            texts = texts[superfluous:]
        if self._blocks is _NOTHING:
            self._blocks = deque()
        origin = _Origin(time.time(), stream, generation, level)
        start = 0
        while start < len(texts):
            if not self._blocks or len(self._blocks[-1].texts) >= _BLOCK:
                self._blocks.append(_Block(self._last + 1))
            block = self._blocks[-1]
            taken = texts[start : start + _BLOCK - len(block.texts)]
            block.texts.extend(taken)
            block.origins.extend(repeat(origin, len(taken)))
            self._last += len(taken)
            start += len(taken)
        self._lines += len(texts)
        self._bytes += sum(map(sys.getsizeof, texts)) + _PLACES * len(texts)
        self._forget_oldest()
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def tail(self, count: int, *, generation: int, stream: Stream) -> list[str]:
        """Return the last non-empty lines of one stream of one instance, oldest first."""
        found: list[str] = []
        for block in reversed(self._blocks):
            for text, origin in zip(reversed(block.texts), reversed(block.origins), strict=True):
                if origin.generation == generation and origin.stream is stream and text.strip():
                    found.append(text.rstrip())
                    if len(found) == count:
                        return found[::-1]
        return found[::-1]

    async def read(self, query: LogQuery) -> AsyncGenerator[LogNews, None]:
        """Yield the lines that match; with `follow`, new ones too, forever.

        Lines that a reader slower than the backend missed, and those pushed out after `query.after`
        before it asked, are reported to it as a number, which counts all streams and levels.
        """
        end = self._last
        # A reader that names no line that it has seen cannot have missed any yet.
        position = query.after if 0 < query.after <= end else self._oldest() - 1
        missed = self._gap(position)
        position += missed
        if query.tail:
            position = await self._before_tail(query, position)
        while True:
            gap = self._gap(position)
            if not query.follow:
                gap = min(gap, end - position)
            missed += gap
            position += gap
            for line in self._from(position) if query.follow or position < end else ():
                if line.sequence > end and not query.follow:
                    break
                position = line.sequence
                if query.wants(line):
                    yield LogNews(line, missed)
                    missed = 0
            if position < (self._last if query.follow else end):
                await asyncio.sleep(0)
                continue
            if missed:
                yield LogNews(None, missed)
                missed = 0
            if not query.follow:
                return
            if position == self._last:
                await self._news()

    async def _news(self) -> None:
        if self._changed is None:
            self._changed = asyncio.Event()
        await self._changed.wait()

    async def _before_tail(self, query: LogQuery, position: int) -> int:
        """Return the number before the first of the newest lines that are wanted."""
        if not query.streams and not query.minimum:
            return max(position, self._last - query.tail)
        left = query.tail
        for block in reversed(list(self._blocks)):
            for index in range(len(block.texts) - 1, -1, -1):
                if block.first + index <= position:
                    return position
                left -= query.wants(block.line(index))
                if not left:
                    return block.first + index - 1
            await asyncio.sleep(0)
        return position

    def _oldest(self) -> int:
        return self._blocks[0].first if self._blocks else self._last + 1

    def _gap(self, position: int) -> int:
        """Return how many lines after this one have been dropped."""
        return max(self._oldest() - 1 - position, 0)

    def _from(self, position: int) -> Iterator[LogLine]:
        """Return the lines after this one that are in one block."""
        if position >= self._last:
            return iter(())
        number = 0
        if len(self._blocks) > 1 and position + 1 >= self._blocks[1].first:
            # All blocks but the first and the last one are full.
            number = 1 + (position + 1 - self._blocks[1].first) // _BLOCK
        block = self._blocks[number]
        start = position + 1 - block.first
        return iter([block.line(index) for index in range(start, len(block.texts))])

    def _forget_oldest(self) -> None:
        while self._lines > self._most_lines or self._bytes > self._most_bytes:
            block = self._blocks[0]
            dropped = 0
            for text in block.texts:
                if self._lines <= self._most_lines and self._bytes <= self._most_bytes:
                    break
                self._bytes -= sys.getsizeof(text) + _PLACES
                self._lines -= 1
                dropped += 1
            if dropped == len(block.texts):
                self._blocks.popleft()
            else:
                del block.texts[:dropped], block.origins[:dropped]
                block.first += dropped
