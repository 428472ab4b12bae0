"""The history of changes: every subscriber sees each one, in order, and can resume after a break."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.common.errors import InvalidRequestError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """The new value of one key; None if it was removed."""

    sequence: int
    key: str
    value: T | None


class ChangeLog(Generic[T]):
    """A bounded log of changes, read by any number of subscribers at their own pace.

    Nothing is queued for a subscriber: one that falls behind the log's capacity has to begin again with
    a snapshot, so a slow subscriber costs no memory and does not delay the others.
    """

    def __init__(self, capacity: int) -> None:
        """Keep the last `capacity` changes."""
        self._epoch = uuid.uuid4().hex[:12]
        self._changes: deque[Change[T]] = deque(maxlen=capacity)
        self._last = 0
        self._changed = asyncio.Event()

    def append(self, key: str, value: T | None) -> None:
        """Record a change and wake the subscribers."""
        self._last += 1
        self._changes.append(Change(self._last, key, value))
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def last(self) -> int:
        """The sequence number of the newest change."""
        return self._last

    def token(self, sequence: int) -> str:
        """Return the resume token for the point after a change."""
        return f"{self._epoch}.{sequence}"

    def position(self, token: str) -> int | None:
        """Return the sequence to resume after; None if that part of the history is not kept.

        Raises InvalidRequestError if the token is malformed.
        """
        epoch, dot, number = token.partition(".")
        if not (dot and epoch and number.isdecimal() and number.isascii()):
            raise InvalidRequestError.of(
                "resume_token", "is not a token of this service; leave it empty for a snapshot"
            )
        sequence = int(number)
        if epoch != self._epoch or not self._holds(sequence):
            return None
        return sequence

    async def follow(self, after: int) -> AsyncIterator[Change[T]]:
        """Yield the changes after a sequence; end when the subscriber has fallen behind."""
        while self._holds(after):
            changed = self._changed
            if after == self._last:
                await changed.wait()
                continue
            change = self._changes[after - self._last]
            after = change.sequence
            yield change

    def _holds(self, sequence: int) -> bool:
        return self._last - len(self._changes) <= sequence <= self._last
