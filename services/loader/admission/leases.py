"""Grants the leases on one model: a call gets one now, waits for one, or is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from services.common.errors import CorralError
from services.loader.instances.instance import Instance, Lease
from services.loader.live_settings import LiveSettings
from services.loader.models.catalog import ModelEntry

from . import errors
from . import wait_estimate as pace
from .connection_lease import CountedCalls
from .meter import Caller, CallMeter, calls_at_once
from .wait_estimate import CallDurations, Stopwatch
from .waiters import LeaseWaiters


class Leases:
    """The leases on one model, over all its instances.

    A call takes one of the model's slots, and counts in the meter over all models. A requested load
    holds the instance without being a call: it takes no slot, and no limit refuses it.
    """

    def __init__(
        self,
        name: str,
        *,
        meter: CallMeter,
        settings: LiveSettings,
        entry: Callable[[], ModelEntry | None],
        released: Callable[[Instance], None],
    ) -> None:
        """`entry` returns the model as loaded last.

        `released` is called with the instance of each released lease.
        """
        self.pace = CallDurations()
        self._name = name
        self._meter = meter
        self._settings = settings
        self._entry = entry
        self._released = released
        self._loading = Stopwatch()
        self._waiters = LeaseWaiters(meter, self._loading)
        self._ready: Instance | None = None
        self._places = 0
        """Calls that may run at once; 0 for no limit, or while the backend is not known yet."""
        self._no_room = False
        self._timed: tuple[()] | tuple[str, str, str] = ()
        """The backend's name and revision, and the model's revision, that the durations are from."""

    # Changes of the model

    def begins(self, instance: Instance) -> None:
        """Called when an instance is being started, or was adopted."""
        timed = instance.backend.name, instance.backend.revision, instance.entry.revision
        if self._timed and timed != self._timed:
            self.forget_pace()
        self._timed = timed
        instance.calls.record_durations_in(self.pace.calls)
        self._places = calls_at_once(instance.entry, instance.backend)

    def forget_pace(self) -> None:
        """Forget how long calls and loads took: the model or its backend changed."""
        self.pace, self._timed = CallDurations(), ()

    def forget_pace_with(self, backends: Collection[str]) -> None:
        """Forget the durations if the last instance used one of these backends."""
        if self._timed and self._timed[0] in backends:
            self.forget_pace()

    def state_changed(self, ready: Instance | None, *, loading: bool, loaded: bool = False) -> None:
        """Called when the model's state changed; `ready` is the instance that serves calls, if any.

        `loading`: the model starts or loads. `loaded`: a load has just ended.
        """
        self._ready = ready
        self._no_room = False
        self._loading.run(time.monotonic(), on=loading)
        if ready is not None and loaded:
            self.pace.loads.append(ready.load_seconds)

    def lack_room(self) -> None:
        """Called when the model has to wait for memory: reports its calls their positions."""
        self._no_room = True
        self._waiters.tell_positions()

    # Requests

    @property
    def calls(self) -> int:
        """The number of waiting calls."""
        return self._waiters.calls

    @property
    def wanted(self) -> bool:
        """Whether a call or a requested load waits."""
        return self._waiters.any

    def take(self, *, calls: bool, client: str = "") -> Lease | None:
        """Return a lease if the model is ready and, for a call, has a free slot. Raises QueueFullError."""
        ready = self._ready
        if ready is None:
            return None
        if not calls:
            return Lease(ready, self._released)
        if self._waiters.calls or (self._places and ready.calls.active >= self._places):
            return None
        if self._meter.full:
            self._meter.make_way(client, retry_after=self.retry_after())
        return self._call(ready)

    def probe(self) -> Lease | None:
        """Return a lease that neither counts nor holds, if the model is ready."""
        if self._ready is None:
            return None
        return Lease(self._ready, self._released, holds=False)

    def count_calls(self, instance: Instance, *, stands_still: Callable[[], float]) -> CountedCalls:
        """Return the lease that counts the calls of a connection which bypasses the gateway.

        `stands_still` returns since when the backend has owed data, by the monotonic clock.
        """
        return CountedCalls(instance, self._released, self._meter, stands_still=stands_still)

    def join(self, caller: Caller | None) -> Coroutine[Any, Any, Lease]:
        """Wait for the load or for a slot; the request is queued at once, before the result is awaited.

        Without a caller the request is not a call. Raises QueueFullError, and DeadlineTooShortError if a
        call's deadline would pass before its turn.
        """
        if caller is None:
            return self._waiters.join(None)
        position = 0
        if caller.deadline is not None or caller.queued is not None:
            position = self._waiters.next_position(caller.client)
        if caller.deadline is not None:
            self._check_deadline(caller.deadline, position)
        if self._waiters.calls >= self._settings.now.queue_size:
            refused = errors.queue_full(self._name, self._waiters.calls, self.retry_after())
            greedy = self._waiters.crowding(caller.client)
            if greedy is None:
                raise refused
            greedy.refuse(refused)
        if self._meter.full:
            self._meter.make_way(caller.client, retry_after=self.retry_after())
        # A call that waits only for the load has no position: it is served with the others after it.
        queues = self._ready is not None or self._no_room or 0 < self._places < position
        joining = self._waiters.join(caller, told=queues)
        if queues and caller.queued is not None:
            caller.queued(position)
        return joining

    def admit(self) -> None:
        """Give leases to the waiting requests that can have one now."""
        self._waiters.admit(self._lease, self._has_place)
        self._waiters.tell_positions()

    def fail(self, error: CorralError) -> None:
        """Raise the error in all waiting requests."""
        self._waiters.fail(error)

    def retry_after(self) -> float:
        """Return after how many seconds a refused call may try again.

        The model's configuration decides (`limits.retry_after_seconds`), otherwise the expected wait in
        the queue.
        """
        entry = self._entry()
        if entry is not None and (configured := entry.config.limits.retry_after_seconds):
            return float(configured)
        wait = pace.expected(self.pace, self._waiters.calls, self._places, self._load_left())
        return pace.retry_after(wait)

    # Helpers

    def _check_deadline(self, deadline: float, position: int) -> None:
        left = deadline - time.monotonic()
        loads = self._load_left()
        if pace.at_least(self.pace, position, self._places, loads) <= left:
            return
        raise errors.deadline_too_short(
            self._name,
            left=left,
            wait=pace.expected(self.pace, position, self._places, loads),
            load_left=loads,
            position=position,
            waiting=self._waiters.calls,
        )

    def _load_left(self) -> float:
        """Return the expected seconds until the load is done; 0 if unknown."""
        if self._ready is not None:
            return 0.0
        since = self._loading.since
        gone = time.monotonic() - since if since is not None else 0.0
        return max(0.0, self.pace.load - gone)

    def _has_place(self) -> bool:
        ready = self._ready
        return ready is not None and (not self._places or ready.calls.active < self._places)

    def _lease(self, calls: bool) -> Lease:
        assert self._ready is not None
        return self._call(self._ready) if calls else Lease(self._ready, self._released)

    def _call(self, instance: Instance) -> Lease:
        lease = Lease(instance, self._call_ended)
        lease.use()
        self._meter.running += 1
        return lease

    def _call_ended(self, instance: Instance) -> None:
        self._meter.running -= 1
        self._released(instance)
