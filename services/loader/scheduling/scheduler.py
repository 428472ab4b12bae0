"""Decides which model may load and which are evicted for it: one queue, every decision a pure plan.

A model asks before each start. Its request is granted at once if it fits, otherwise when its victims or
other models are gone; it is refused when that cannot happen, or not in time. A granted model counts with
its whole reservation from that moment on, so two loads never share the same memory.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.common.errors import CorralError, NoRoomError, Resource
from services.common.process.logging import get_logger
from services.loader.lifecycle.events import Cause, StopReason
from services.loader.live_settings import LiveSettings, Tunables

from .eviction import BlockedRequests, EvictionMode, Limits, Newcomer, Occupant, Plan, plan

_log = get_logger(__name__)

STEP = 0.1
"""Seconds between scheduling passes while models wait: changes by time alone send no event."""

SHARE = 20
"""Those passes take at most 1/SHARE of the time, however many models wait."""

EXACT = 32
"""Waiting models that each of those passes plans for although a smaller one does not fit: their wait
reasons are updated in turn."""

CLAIMS = 16
"""At most this many starving models are considered before the rest of the queue is skipped: each
adds to the cost of a scheduling pass."""

TELL = 1.0
"""The least seconds between two published wait reasons: the figures in them change all the time."""


class Tenant(Protocol):
    """A model, as the scheduler sees it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def occupancy(self) -> Occupant | None:
        """Return its memory and slot; None if it holds none."""
        ...

    @property
    def loading(self) -> bool:
        """Whether it is starting or loading, after its request was granted."""
        ...

    def evict(self, reason: StopReason, *, force: bool) -> None:
        """Begin to unload it."""
        ...


@dataclass(slots=True, eq=False)
class RoomRequest:
    """A model's request for memory and a slot."""

    name: str
    memory: Mapping[str, int]
    granted: Callable[[], None]
    refused: Callable[[CorralError], None]
    counts: bool = True
    groups: frozenset[str] = frozenset()
    asked: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.time)
    """Seconds since the epoch, for people."""
    waits_for: str = ""
    """What it waits for, for people."""
    told: str = ""
    """The wait reason published last; `told_at` is when."""
    told_at: float = -math.inf

    planned: float = -math.inf
    """When the request was last planned for, by the monotonic clock."""

    _paused: float | None = None

    def pause(self, now: float, *, paused: bool) -> None:
        """Stop or restart the clock for the request's waiting time.

        Time without a slot, or behind a model that is being loaded, does not count, as no eviction could
        have helped then: otherwise a model would be drained for the next one as soon as it is ready.
        """
        if self._paused is not None:
            self.asked += now - self._paused
        self._paused = now if paused else None

    def newcomer(self, now: float) -> Newcomer:
        """Return the request as the input of a plan."""
        return Newcomer(self.name, self.counts, self.groups, self.memory, now - self.asked)

    def claim(self) -> Occupant:
        """Return the request as an occupant, for requests behind it, which may not overtake it."""
        return Occupant(
            self.name, settled=False, counts=self.counts, groups=self.groups, memory=self.memory
        )


class Scheduler:
    """The queue of room requests, and the evictions that they cause."""

    def __init__(
        self,
        *,
        settings: LiveSettings,
        free: Callable[[Iterable[Occupant], Tunables], Mapping[str, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`free` returns the bytes by device that are free alongside the occupants."""
        self._tenants: dict[str, Tenant] = {}
        """Models that hold memory, by name."""
        self._listeners: list[Callable[[str], None]] = []
        self._settings = settings
        self._free = free
        self._clock = clock
        self._queue: list[RoomRequest] = []
        self._timer: asyncio.TimerHandle | None = None
        self._deciding = False
        self._again = False
        settings.listen(self.wake)

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with a model's name when what it waits for changes."""
        self._listeners.append(listener)

    def add(self, tenant: Tenant) -> None:
        """Add a model whose request was granted; it stays until `remove`."""
        self._tenants[tenant.name] = tenant

    def remove(self, name: str) -> None:
        """Remove a model that no longer holds memory."""
        self._tenants.pop(name, None)

    def occupants(self) -> list[Occupant]:
        """Return the current state of the models that hold memory."""
        found = (tenant.occupancy() for tenant in self._tenants.values())
        return [occupant for occupant in found if occupant is not None]

    @property
    def queue(self) -> tuple[RoomRequest, ...]:
        """The waiting requests, in order."""
        return tuple(self._queue)

    @property
    def in_demand(self) -> bool:
        """Whether any request waits."""
        return bool(self._queue)

    def position(self, name: str) -> int:
        """Return the place of a model in the queue, from 1; 0 if it does not wait."""
        return next(
            (place for place, request in enumerate(self._queue, 1) if request.name == name), 0
        )

    def waits_for(self, name: str) -> str:
        """Return what a model waits for, for people; empty if it does not wait."""
        return next((request.waits_for for request in self._queue if request.name == name), "")

    def ask(self, request: RoomRequest) -> None:
        """Queue a request; its callback `granted` or `refused` is called, perhaps before this returns."""
        self._queue.append(request)
        self.wake()

    def withdraw(self, name: str) -> None:
        """Remove the request of a model."""
        self._queue = [request for request in self._queue if request.name != name]
        self.wake()

    def wake(self) -> None:
        """Run a scheduling pass: something changed."""
        self._look(frozenset())

    def _look_round(self) -> None:
        self._timer = None
        oldest = heapq.nsmallest(EXACT, self._queue, key=lambda request: request.planned)
        self._look({request.name for request in oldest})

    def _look(self, exact: Collection[str]) -> None:
        if self._deciding:
            self._again = True
            return
        self._deciding = True
        began = time.perf_counter()
        try:
            # Each decision affects the next one; their number is bounded by the models and requests.
            while self._decide(exact):
                pass
        finally:
            self._deciding = False
        if self._timer is not None and not self._queue:
            self._timer.cancel()
            self._timer = None
        elif self._timer is None and self._queue:
            delay = max(STEP, (time.perf_counter() - began) * SHARE)
            self._timer = asyncio.get_running_loop().call_later(delay, self._look_round)

    def plan(self, request: RoomRequest) -> Plan:
        """Return the plan for a request now, without carrying it out."""
        occupants = self.occupants()
        settings = self._settings.now
        free = self._free(occupants, settings)
        return plan(request.newcomer(self._clock()), occupants, limits(settings), free)

    # Decisions

    def _decide(self, exact: Collection[str]) -> bool:
        """Carry out the next decision; False if there is none.

        Requests that need at least as much as one that does not fit are skipped, except for new ones and
        those of the models in `exact`.
        """
        self._again = False
        settings = self._settings.now
        crowded = 0 < settings.active_limit < len(self._tenants)
        if not self._queue and not crowded:
            return False  # most wakes: no request waits, so no occupancy has to be computed
        occupants = self.occupants()
        if crowded and self._enforce_limit(occupants, settings):
            return True
        now = self._clock()
        free = self._free(occupants, settings) if self._queue else {}
        loading = {tenant.name for tenant in self._tenants.values() if tenant.loading}
        loads = len(loading)
        claims = 0
        blocked = BlockedRequests()
        for request in list(self._queue):
            if loads >= settings.parallel_loads:
                request.pause(now, paused=True)
                self._tell(request, f"a slot: {loads} models are loading")
                continue
            newcomer = request.newcomer(now)
            known = math.isfinite(request.planned) and request.name not in exact
            if not (known and blocked.covers(newcomer, settings.starvation_bound)):
                request.planned = now
                decided = plan(newcomer, occupants, limits(settings), free)
                request.pause(now, paused=any(each.name in loading for each in decided.blockers))
                if self._carry_out(request, decided, now):
                    return True
                self._tell(request, _waits_for(decided))
                if decided.blocked:
                    blocked.add(newcomer, settings.starvation_bound)
            if now - request.asked >= settings.starvation_bound:
                # Requests behind it must not take the memory that it waits for.
                claims += 1
                if claims == CLAIMS:
                    break
                occupants.append(request.claim())
                free = self._free(occupants, settings)
        return self._again

    def _carry_out(self, request: RoomRequest, decided: Plan, now: float) -> bool:
        """Grant or refuse the request, or evict for it; False if it has to wait."""
        if decided.fits:
            self._remove(request)
            request.granted()
            return True
        late = now - request.asked >= self._settings.now.room_timeout
        if decided.victims and not (late and _drains(decided)):
            self._evict(request, decided)
            return True
        return self._give_up(request, decided, now)

    def _evict(self, request: RoomRequest, decided: Plan) -> None:
        victims = {victim.name: victim for victim in decided.victims}
        self._tell(request, f"room: {', '.join(sorted(victims))} makes way")
        for tenant in list(self._tenants.values()):
            victim = victims.get(tenant.name)
            if victim is None:
                continue
            text = f"evicted for model {request.name!r}: {victim.why}"
            _log.info("evicting", model=victim.name, to_load=request.name, why=victim.why)
            tenant.evict(
                StopReason(Cause.EVICTED, text, request.name),
                force=victim.way is EvictionMode.FORCE,
            )

    def _give_up(self, request: RoomRequest, decided: Plan, now: float) -> bool:
        """Refuse a request that cannot be met, or not in time."""
        if decided.pending and not decided.victims and not decided.blockers:
            return (
                False  # it will fit after the unloads in progress, which have their own deadlines
            )
        settings = self._settings.now
        if decided.possible and now - request.asked < settings.room_timeout:
            return False
        self._remove(request)
        request.refused(no_room(request.name, decided, settings))
        return True

    def _enforce_limit(self, occupants: Sequence[Occupant], settings: Tunables) -> bool:
        """Evict models above the limit, after it was lowered."""
        staying = [each for each in occupants if each.counts and not each.leaving]
        if len(staying) <= settings.active_limit:
            return False
        nobody = Newcomer("", counts=False)
        decided = plan(nobody, occupants, limits(settings), {})
        victims = {victim.name: victim for victim in decided.victims}
        for tenant in list(self._tenants.values()):
            if victim := victims.get(tenant.name):
                text = f"only {settings.active_limit} models may be active now; {victim.why}"
                tenant.evict(StopReason(Cause.LIMITS, text), force=victim.way is EvictionMode.FORCE)
        return bool(victims)

    # Helpers

    def _remove(self, request: RoomRequest) -> None:
        self._queue.remove(request)

    def _tell(self, request: RoomRequest, text: str) -> None:
        request.waits_for = text
        now = self._clock()
        if request.told != text and now - request.told_at >= TELL:
            request.told, request.told_at = text, now
            for listener in self._listeners:
                listener(request.name)


def limits(settings: Tunables) -> Limits:
    """Return the eviction limits in the settings."""
    return Limits(
        active=settings.active_limit,
        evict_busy=settings.force_eviction_when_busy,
        largest_first=settings.size_aware_eviction,
        starvation_bound=settings.starvation_bound,
    )


def _drains(decided: Plan) -> bool:
    """Whether carrying out the plan has to wait for running calls, which may never end."""
    return any(victim.way is EvictionMode.DRAIN for victim in decided.victims)


def _waits_for(decided: Plan) -> str:
    if decided.pending and not decided.blockers:
        return f"room: {', '.join(decided.pending)} makes way"
    in_the_way = "; ".join(f"{blocker.name}: {blocker.why}" for blocker in decided.blockers)
    return f"room: {decided.lacking} ({in_the_way})" if in_the_way else f"room: {decided.lacking}"


def no_room(name: str, decided: Plan, settings: Tunables) -> CorralError:
    """Return the error for a model that does not fit."""
    in_the_way = [f"{blocker.name} ({blocker.why})" for blocker in decided.blockers]
    text = f"model {name!r} does not fit: {decided.lacking}"
    if in_the_way:
        text += f"; in its way: {', '.join(in_the_way)}"
    if decided.possible:
        remedy = f"; none of it went within {settings.room_timeout:g} s: retry later, or unload one"
    elif in_the_way:
        remedy = "; unpin or unload one, or raise the limit"
    else:
        remedy = (
            "; give its need in the configuration (`memory`) if the estimate is wrong, or turn off"
            " fit_check"
        )
    return NoRoomError(
        text + remedy,
        retry_after=max(settings.lru_eviction_retry_interval, 0.1) if decided.possible else None,
        resource=Resource("model", name),
        metadata={"model": name, "lacking": decided.lacking},
    )
