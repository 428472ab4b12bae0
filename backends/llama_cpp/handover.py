"""From the engine's worker thread to the event loop, with a bound in between."""

import asyncio
import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Handover(Generic[T]):
    """A bounded queue with one producing thread and one consuming task.

    When the consumer is slow the producer waits in `put`. llama.cpp itself then keeps what it
    generates meanwhile, which the request's token limit or the context size bounds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        """Join the consumer's `loop` to one producer that may be `limit` items ahead."""
        self._loop = loop
        self._limit = limit
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._wake = asyncio.Event()
        self._consumer_waits = False
        self._closed = False
        self._cancelled = False
        self._error: BaseException | None = None

    @property
    def cancelled(self) -> bool:
        """Whether the consumer has gone."""
        return self._cancelled

    def put(self, item: T) -> bool:
        """Hand one item over (producer); True means: stop producing, nobody listens any more."""
        with self._changed:
            while len(self._items) >= self._limit and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                return True
            self._items.append(item)
            self._notify()
        return False

    def close(self, error: BaseException | None = None) -> None:
        """Say that no item follows (producer); `error` is raised where the consumer takes."""
        with self._changed:
            self._closed = True
            self._error = self._error or error
            self._notify()

    def cancel(self) -> None:
        """Say that nobody listens any more (consumer); the producer stops at its next item."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._changed.notify_all()

    def abort(self, error: BaseException) -> None:
        """End it from outside (event loop): the consumer gets `error`, the producer stops."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._error = error
            self._changed.notify_all()
            self._notify()

    async def take(self) -> list[T]:
        """Wait for items (consumer) and return all there are; an empty list is the end."""
        while True:
            with self._changed:
                if self._items:
                    batch = list(self._items)
                    self._items.clear()
                    self._changed.notify_all()
                    return batch
                if self._error is not None:
                    raise self._error
                if self._closed:
                    return []
                self._wake.clear()
                self._consumer_waits = True
            await self._wake.wait()

    def _notify(self) -> None:
        """Wake the consumer, once for all items it has not seen; the lock is held."""
        if self._consumer_waits and not self._loop.is_closed():
            self._consumer_waits = False
            self._loop.call_soon_threadsafe(self._wake.set)
