"""Those who wait for a model: calls for a lease, unloads for its end."""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from services.common.errors import CorralError, DeadlineError
from services.loader.instances.instance import Lease

from .fair_queue import FairQueue
from .meter import Caller, CallMeter, Queued
from .wait_estimate import Stopwatch


@dataclass(slots=True, eq=False)
class _Waiter:
    """One that waits for a lease."""

    lease: asyncio.Future[Lease]
    came: float
    loading: float
    """What the model's stopwatch showed then."""
    queue: LeaseWaiters
    is_call: bool
    client: str = ""
    deadline: float = math.inf
    tell: Callable[[int], None] | None = None
    """Hears its position; None if it has, or does not ask."""

    def refuse(self, error: CorralError) -> None:
        """Take it out of its queue, and raise the error in it."""
        self.queue.withdraw(self)
        if not self.lease.done():
            self.lease.set_exception(error)


class LeaseWaiters:
    """Who waits for a lease, for the load or for a place: clients by turns, see FairQueue."""

    def __init__(self, meter: CallMeter, loading: Stopwatch) -> None:
        """Begin with nobody; the calls that wait here count in `meter` too.

        `loading` runs while the model starts and loads: what a waiter sees of that is its load time.
        """
        self._calls: FairQueue[_Waiter] = FairQueue()
        self._others: deque[_Waiter] = deque()
        """Loads that were asked for: they need no place, and have no turn."""
        self._untold = 0
        self._meter = meter
        self._loading = loading

    @property
    def calls(self) -> int:
        """How many calls wait."""
        return self._calls.length

    @property
    def any(self) -> bool:
        """Whether anybody waits, a call or another."""
        return bool(self._calls.length or self._others)

    def next_position(self, client: str) -> int:
        """Return the place that one more call of this client would have, from 1."""
        return self._calls.next_position(client)

    def crowding(self, client: str) -> Queued | None:
        """Return the call that has to go for a newcomer of this client; None if that is the newcomer."""
        return self._calls.crowding(client)

    def join(self, caller: Caller | None, *, told: bool = False) -> Coroutine[Any, Any, Lease]:
        """Take a place among those who wait, at once; await the result for the lease.

        Without a caller it is no call: it needs none of the model's places, and has no turn. `told`: it
        hears of its position later, if it comes to that, or has heard of it.
        """
        now = time.monotonic()
        lease: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(lease, now, self._loading.read(now), self, caller is not None)
        if caller is None:
            self._others.append(waiter)
            return self._joined(waiter)
        waiter.client = caller.client
        if caller.deadline is not None:
            waiter.deadline = caller.deadline
        if caller.queued is not None and not told:
            waiter.tell = caller.queued
            self._untold += 1
        self._calls.push(waiter)
        self._meter.queue.push(waiter)
        return self._joined(waiter)

    def tell_positions(self) -> None:
        """Tell each call that was not told yet its position: how many turns it is away."""
        if not self._untold:
            return
        for position, waiter in enumerate(list(self._calls), 1):
            tell, waiter.tell = waiter.tell, None
            if tell is not None:
                tell(position)
        self._untold = 0

    def admit(self, lease: Callable[[bool], Lease], free: Callable[[], bool]) -> None:
        """Give each a lease of its own; calls by turns, and only as long as a place is `free`."""
        while self._others:
            self._serve(self._others.popleft(), lease)
        while self._calls and free():
            waiter = self._calls.pop()
            self._left(waiter)
            self._serve(waiter, lease)

    def fail(self, error: CorralError) -> None:
        """Raise the error in each."""
        failed = [*self._others, *self._calls]
        self._others.clear()
        for waiter in failed:
            waiter.refuse(copy.copy(error))

    def withdraw(self, waiter: _Waiter) -> bool:
        """Take out one that leaves; False if it is not here any more."""
        if waiter in self._calls:
            self._calls.remove(waiter)
            self._left(waiter)
        elif waiter in self._others:
            self._others.remove(waiter)
        else:
            return False
        return True

    def _left(self, waiter: _Waiter) -> None:
        self._meter.queue.remove(waiter)
        self._untold -= waiter.tell is not None

    def _serve(self, waiter: _Waiter, lease: Callable[[bool], Lease]) -> None:
        if waiter.lease.done():
            return
        now = time.monotonic()
        if now >= waiter.deadline:
            waiter.lease.set_exception(expired())
            return
        # The lease is taken here, not when the waiter wakes: in between nothing may evict it.
        given = lease(waiter.is_call)
        given.load_time = self._loading.read(now) - waiter.loading
        given.queue_time = max(0.0, now - waiter.came - given.load_time)
        waiter.lease.set_result(given)

    async def _joined(self, waiter: _Waiter) -> Lease:
        try:
            return await waiter.lease
        except asyncio.CancelledError:
            waited = self.withdraw(waiter)
            if not waited and not waiter.lease.cancelled() and waiter.lease.exception() is None:
                waiter.lease.result().release()  # it was served in the moment in which it left
            raise


def expired() -> DeadlineError:
    """Return the error for a call whose time was over before it could begin."""
    return DeadlineError("the deadline of the call had passed before it could begin")


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
