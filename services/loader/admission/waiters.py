"""Requests that wait for a model: calls and loads for a lease, unloads for its end."""

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
    """A call or requested load that waits for a lease."""

    lease: asyncio.Future[Lease]
    came: float
    loading: float
    """The reading of the model's stopwatch at that time."""
    queue: LeaseWaiters
    is_call: bool
    client: str = ""
    deadline: float = math.inf
    tell: Callable[[int], None] | None = None
    """Called with the position; None if it was called already, or is not wanted."""

    def refuse(self, error: CorralError) -> None:
        """Remove the waiter from its queue, and raise the error in it."""
        self.queue.withdraw(self)
        if not self.lease.done():
            self.lease.set_exception(error)


class LeaseWaiters:
    """Requests that wait for the load or for a slot: clients take turns, see FairQueue."""

    def __init__(self, meter: CallMeter, loading: Stopwatch) -> None:
        """The waiting calls also count in `meter`.

        `loading` runs while the model starts and loads; how far it advances during a wait is the load time.
        """
        self._calls: FairQueue[_Waiter] = FairQueue()
        self._others: deque[_Waiter] = deque()
        """Requested loads: they need no slot, and take no turn."""
        self._untold = 0
        self._meter = meter
        self._loading = loading

    @property
    def calls(self) -> int:
        """The number of waiting calls."""
        return self._calls.length

    @property
    def any(self) -> bool:
        """Whether a call or a requested load waits."""
        return bool(self._calls.length or self._others)

    def next_position(self, client: str) -> int:
        """Return the position, from 1, that another call of this client would have."""
        return self._calls.next_position(client)

    def crowding(self, client: str) -> Queued | None:
        """Return the call to refuse for a new one of this client; None if the new one must be refused."""
        return self._calls.crowding(client)

    def join(self, caller: Caller | None, *, told: bool = False) -> Coroutine[Any, Any, Lease]:
        """Queue a request at once; await the result for the lease.

        Without a caller the request is not a call: it needs no slot, and takes no turn. `told`: the caller
        already knows its position; otherwise `tell_positions` reports it.
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
        """Report its position, in turns, to each call that does not know it yet."""
        if not self._untold:
            return
        for position, waiter in enumerate(list(self._calls), 1):
            tell, waiter.tell = waiter.tell, None
            if tell is not None:
                tell(position)
        self._untold = 0

    def admit(self, lease: Callable[[bool], Lease], free: Callable[[], bool]) -> None:
        """Give each request its own lease; calls by turns, and only while a slot is `free`."""
        while self._others:
            self._serve(self._others.popleft(), lease)
        while self._calls and free():
            waiter = self._calls.pop()
            self._left(waiter)
            self._serve(waiter, lease)

    def fail(self, error: CorralError) -> None:
        """Raise the error in each waiting request."""
        failed = [*self._others, *self._calls]
        self._others.clear()
        for waiter in failed:
            waiter.refuse(copy.copy(error))

    def withdraw(self, waiter: _Waiter) -> bool:
        """Remove a waiter that gives up; False if it is no longer here."""
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
                waiter.lease.result().release()  # it was served at the moment it gave up
            raise


def expired() -> DeadlineError:
    """Return the error for a call whose deadline passed before it could begin."""
    return DeadlineError("the deadline of the call had passed before it could begin")


class StopWaiters:
    """Unloads that wait until the process group is gone."""

    def __init__(self) -> None:
        """No unload waits at first."""
        self._waiters: list[asyncio.Future[None]] = []

    def join(self) -> asyncio.Future[None]:
        """Return a future for the end; cancelling it does not affect other waiters."""
        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # The waiter may give up before the answer; an unretrieved error must not be logged.
        stopped.add_done_callback(lambda answer: answer.exception())
        self._waiters.append(stopped)
        return asyncio.shield(stopped)

    def answer(self, error: CorralError | None) -> None:
        """Answer all waiters: the group is gone, or the error why it is not."""
        waiters, self._waiters = self._waiters, []
        for stopped in waiters:
            if stopped.done():
                continue
            if error is None:
                stopped.set_result(None)
            else:
                stopped.set_exception(error)
