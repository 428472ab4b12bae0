"""Stop words, matched on the text as it comes.

llama.cpp matches them itself, but when a stream ends (token limit, end of text) while the
beginning of a stop word is held back, that text is lost. So they are matched here.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Piece:
    """Some text and the log probabilities of the tokens it came from."""

    text: str
    logprobs: tuple[Any, ...] = ()


class StopMatcher:
    """Passes text on, except what could still become a stop word.

    `stopped` turns True when a stop word was completed; the text before it has then been passed
    on, and nothing after it will be.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        """Watch for any of `stops`; empty ones are left out."""
        self._stops = tuple(stop for stop in stops if stop)
        self._held: deque[Piece] = deque()
        self.stopped = False

    def feed(self, piece: Piece) -> list[Piece]:
        """Add the next piece; return the pieces that can be sent now, in order."""
        if self.stopped:
            return []
        if not self._stops:
            return [piece]
        self._held.append(piece)
        text = "".join(held.text for held in self._held)
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._cut(min(found))
        return self._pass_on(len(text) - self._partial(text))

    def flush(self) -> list[Piece]:
        """Return what is held back: the text has ended, so it became no stop word."""
        held = list(self._held)
        self._held.clear()
        return held

    def _partial(self, text: str) -> int:
        """Length of the longest end of `text` that a stop word begins with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _pass_on(self, certain: int) -> list[Piece]:
        """Release whole pieces that end within the first `certain` characters."""
        out: list[Piece] = []
        while self._held and len(self._held[0].text) <= certain:
            piece = self._held.popleft()
            certain -= len(piece.text)
            out.append(piece)
        return out

    def _cut(self, end: int) -> list[Piece]:
        """Release the first `end` characters and drop the rest."""
        out = self._pass_on(end)
        left = end - sum(len(piece.text) for piece in out)
        if left > 0:
            out.append(replace(self._held[0], text=self._held[0].text[:left], logprobs=()))
        self._held.clear()
        return out
