"""Those who wait for a model: calls for its lease, unloads for its end."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from services.common.errors import CorralError

from .instance import Lease


class LeaseWaiters:
    """Calls that wait for a load which they share."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._waiters: deque[asyncio.Future[Lease]] = deque()

    def join(self) -> Coroutine[Any, Any, Lease]:
        """Take a place among those who wait, at once; await the result for the lease."""
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return self._joined(waiter)

    def admit(self, lease: Callable[[], Lease]) -> None:
        """Give each a lease of its own, in the order in which they came."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                # The lease is taken here, not when the waiter wakes: in between nothing may evict it.
                waiter.set_result(lease())

    def fail(self, error: CorralError) -> None:
        """Raise the error in each."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(copy.copy(error))

    async def _joined(self, waiter: asyncio.Future[Lease]) -> Lease:
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()
            raise
        finally:
            waiter.cancel()


class StopWaiters:
    """Unloads that wait until the process group is gone."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._waiters: list[asyncio.Future[None]] = []

    def join(self) -> asyncio.Future[None]:
        """Take a place among those who wait; whoever leaves leaves the others alone."""
        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Somebody may leave before the answer; an error that nobody takes is none of the log's.
        stopped.add_done_callback(lambda answer: answer.exception())
        self._waiters.append(stopped)
        return asyncio.shield(stopped)

    def answer(self, error: CorralError | None) -> None:
        """Tell all that the group is gone, or why it stays."""
        waiters, self._waiters = self._waiters, []
        for stopped in waiters:
            if stopped.done():
                continue
            if error is None:
                stopped.set_result(None)
            else:
                stopped.set_exception(error)
