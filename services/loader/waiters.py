"""Those who wait for a model: calls for a lease, unloads for its end."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from services.common.errors import CorralError

from .admission import CallMeter
from .instance import Lease


@dataclass(slots=True, eq=False)
class _Waiter:
    lease: asyncio.Future[Lease]
    calls: bool
    """It is a call, which needs one of the model's places; a load that was asked for does not."""


class LeaseWaiters:
    """Who waits for a lease, in the order in which they came: for the load, or for a place."""

    def __init__(self, meter: CallMeter) -> None:
        """Begin with nobody; the calls that wait here count in `meter` too."""
        self._waiters: deque[_Waiter] = deque()
        self._calls = 0
        self._meter = meter

    @property
    def calls(self) -> int:
        """How many calls wait."""
        return self._calls

    def __len__(self) -> int:
        """Return how many wait, calls and others."""
        return len(self._waiters)

    def join(self, *, calls: bool) -> Coroutine[Any, Any, Lease]:
        """Take a place among those who wait, at once; await the result for the lease."""
        waiter = _Waiter(asyncio.get_running_loop().create_future(), calls)
        self._waiters.append(waiter)
        self._count(int(calls))
        return self._joined(waiter)

    def admit(self, lease: Callable[[bool], Lease], free: Callable[[], bool]) -> None:
        """Give each a lease of its own, in order; calls only as long as a place is `free`."""
        held_up: deque[_Waiter] = deque()
        # Once there is no place, only those that are no calls can still be served.
        while self._waiters and (not held_up or len(self._waiters) + len(held_up) > self._calls):
            waiter = self._waiters.popleft()
            if waiter.calls and not (free() or waiter.lease.done()):
                held_up.append(waiter)
                continue
            self._count(-waiter.calls)
            if not waiter.lease.done():
                # The lease is taken here, not when the waiter wakes: in between nothing may evict it.
                waiter.lease.set_result(lease(waiter.calls))
        self._waiters.extendleft(reversed(held_up))

    def fail(self, error: CorralError) -> None:
        """Raise the error in each."""
        waiters, self._waiters = self._waiters, deque()
        self._count(-self._calls)
        for waiter in waiters:
            if not waiter.lease.done():
                waiter.lease.set_exception(copy.copy(error))

    async def _joined(self, waiter: _Waiter) -> Lease:
        try:
            return await waiter.lease
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                self._count(-waiter.calls)
            elif not waiter.lease.cancelled() and waiter.lease.exception() is None:
                waiter.lease.result().release()  # it was served in the moment in which it left
            raise

    def _count(self, calls: int) -> None:
        self._calls += calls
        self._meter.waiting += calls


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
