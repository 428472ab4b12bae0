"""Drives one model through its lifecycle: performs the effects, and posts what happens as events.

Everything that changes the state goes through `_post`, which runs to the end without awaiting, so no
two events ever interleave. Work that takes time runs in its own task and reports back as an event.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any

from services.common.errors import BackendNotFoundError, CorralError
from services.common.process.logging import get_logger
from services.loader.admission.leases import Leases
from services.loader.admission.waiters import StopWaiters
from services.loader.instances.instance import Instance
from services.loader.lifecycle import effects, events, machine
from services.loader.lifecycle.events import Cause, Failure, StopReason
from services.loader.lifecycle.state import RESTING, After, Lifecycle, Phase
from services.loader.logs.log_book import LogBook
from services.loader.memory.reservation import Reservation
from services.loader.models.catalog import ModelEntry
from services.loader.scheduling.eviction import Occupant
from services.loader.scheduling.occupancy import LastUnload, occupant

from . import errors
from .backoffs import Backoffs
from .dependencies import SupervisorDependencies
from .load_requests import LoadRequests
from .reservation import ModelReservation
from .runner import Runner
from .timers import Timers

_log = get_logger(__name__)


class Supervisor:
    """One model, over all its instances."""

    def __init__(
        self,
        name: str,
        *,
        dependencies: SupervisorDependencies,
        logs: LogBook,
        changed: Callable[[Supervisor], None],
    ) -> None:
        """`changed` is called after every transition, when the state can be read."""
        self.name = name
        self.logs = logs
        self.state = Lifecycle()
        self.state_time = time.time()
        self.instance: Instance | None = None
        self.entry: ModelEntry | None = None
        """The model as it was when its load began."""
        self.not_tried: Mapping[str, str] = {}
        """Backends that are not candidates, and why."""
        self.last_unload: LastUnload | None = None
        self.leases = Leases(
            name,
            meter=dependencies.calls,
            settings=dependencies.settings,
            entry=lambda: self.entry,
            released=self._released,
        )
        self.reservation = ModelReservation(name, dependencies, self._post)
        self.backoffs = Backoffs(
            name,
            backoff=dependencies.backoff,
            quarantine=dependencies.timeouts.quarantine,
            ended=lambda candidate: self._post(events.BackoffEnded(candidate)),
        )
        self.loads = LoadRequests(self, self._post)
        self._dependencies = dependencies
        self._changed = changed
        self._runner = Runner(
            name,
            starter=dependencies.starter,
            find_backend=dependencies.backends.find,
            models_path=dependencies.models_path,
            timeouts=dependencies.timeouts,
            logs=logs,
            options=dependencies.options,
            activity=dependencies.activity,
            released=dependencies.ledger.released,
            post=self._post,
            spawn=self._spawn,
        )
        self._stops = StopWaiters()
        self._events: deque[events.Event] = deque()
        self._posting = False
        self._timers = Timers(self._post)
        self._forced = False

    # Requests

    @property
    def loading(self) -> bool:
        """Whether a load is in progress, which others may join."""
        return self.state.phase in (Phase.STARTING, Phase.LOADING)

    @property
    def joinable(self) -> bool:
        """Whether a call made now only has to wait: for the load, or for a slot."""
        return self.state.phase in (Phase.WAITING, Phase.STARTING, Phase.LOADING, Phase.READY)

    def adopt(self, instance: Instance, reservation: Reservation) -> None:
        """Adopt a backend that has already loaded the model."""
        self.entry, self.instance = instance.entry, instance
        self.reservation.taken_by(instance, reservation)
        instance.renumber(self.state.generation + 1)
        self.leases.begins(instance)
        self._post(events.Adopted(instance.backend.name))
        self._runner.watch(instance)

    async def leave(self) -> bool:
        """Leave an idle instance running for the next loader; False if it must be ended.

        The supervisor must not be used afterwards.
        """
        instance = self.instance
        if self.state.phase is not Phase.READY or instance is None:
            return False
        if instance.calls.holds or instance.outdated:
            return False
        if not await self._dependencies.starter.leave(instance):
            return False
        self._dependencies.scheduler.remove(self.name)
        return True

    async def stop(self, reason: StopReason, *, force: bool) -> None:
        """Unload and wait until the process group is gone. Raises ModelBusyError. Idempotent."""
        if self.state.phase in RESTING or self.state.phase is Phase.WAITING:
            self._post(events.StopRequested(reason, force))
            return
        stopped = self._stops.join()
        self._stop(reason, force=force)
        await stopped

    def evict(self, reason: StopReason, *, force: bool) -> None:
        """Begin to unload the model."""
        self._stop(reason, force=force)

    def reset(self) -> None:
        """Forget earlier failures: something changed, or the caller asks for a retry."""
        self._post(events.Changed())

    def report_lost(self, instance: Instance, error: CorralError) -> None:
        """Called when an external backend stops answering; the next call connects again."""
        self._post(events.Exited(instance.generation, Failure(instance.backend.name, error)))

    def configuration_changed(self, revision: str) -> None:
        """Called with the configuration's revision; an instance of another revision is stopped when idle."""
        known = self.entry is not None and self.entry.revision
        if known and known != revision and self.state.phase in RESTING:
            self._post(events.Changed())
        if (instance := self.instance) is not None:
            before = instance.leaving
            instance.compare_entry(revision)
            self._stop_if_outdated(instance)
            self._tell_holders(instance, before)

    def backends_changed(self, names: Collection[str]) -> None:
        """Called when the backends of these names changed: loads that failed with them may work now."""
        state, entry = self.state, self.entry
        if state.phase in RESTING and entry is not None:
            involved = {penalty.candidate for penalty in state.penalties}
            involved |= {failure.candidate for failure in state.failures}
            if entry.config.backend in names or involved & set(names):
                self._post(events.Changed())
        instance = self.instance
        if instance is None:
            self.leases.forget_pace_with(names)
            return
        if instance.backend.name not in names:
            return
        try:
            found = self._dependencies.backends.find(instance.backend.name)
        except BackendNotFoundError:
            return  # the backend was removed; only this instance of it is left
        before = instance.leaving
        instance.compare_backend(found.revision)
        self._stop_if_outdated(instance)
        self._tell_holders(instance, before)

    def occupancy(self) -> Occupant | None:
        """Return the model's memory and slot; None if it holds none."""
        phase, instance = self.state.phase, self.instance
        if not _has_room(phase):
            return None
        assert self.entry is not None
        return occupant(
            self.name,
            phase,
            instance.entry if instance else self.entry,
            instance,
            memory=self.memory,
            wanted=self.leases.wanted,
            pinned=self._dependencies.pins.pinned(self.entry.name, self.entry.config.pinned),
            counts=self.reservation.counts,
            last_unload=self.last_unload,
        )

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes by device: measured if possible, otherwise reserved; empty if the model is not loaded."""
        if self.instance is not None and self.instance.memory:
            return self.instance.memory
        return {} if self.state.phase in RESTING else self.reservation.current.memory

    # The machine

    def _post(self, event: events.Event) -> None:
        self._events.append(event)
        if self._posting:
            return  # posted by an effect at once; the loop below handles it next
        self._posting = True
        began = self.state
        try:
            while self._events:
                self._take(self._events.popleft())
        finally:
            self._posting = False
        if self.state.phase is not began.phase:
            self._dependencies.scheduler.wake()

    def _take(self, event: events.Event) -> None:
        before = self.state
        self.state, due = machine.step(before, event)
        if self.state.phase is not before.phase:
            self._entered(before)
        for effect in due:
            self._perform(effect)
        if (
            before.phase is Phase.READY
            and self.state.phase is not Phase.READY
            and self.leases.wanted
        ):
            # Calls that wait for a slot do not end with the instance: they wait for the next one.
            self._post(events.LoadRequested(before.candidates))
        if self.state.phase is Phase.BACKOFF and before.phase is not Phase.BACKOFF:
            self.backoffs.watch(self.state)
        if isinstance(event, events.GroupGone) and before.phase is Phase.STOPPING:
            self._stops.answer(None)
        # Others do not see the WAITING phase until memory is short; then the scheduler publishes it.
        if self.state != before and self.state.phase is not Phase.WAITING:
            self._changed(self)

    def _entered(self, before: Lifecycle) -> None:
        self.state_time = time.time()
        phase = self.state.phase
        had, has = _has_room(before.phase), _has_room(phase)
        if has and not had:
            self._dependencies.scheduler.add(self)
        elif had and not has:
            self._dependencies.scheduler.remove(self.name)
        ready = self.instance if phase is Phase.READY else None
        loaded = before.phase is Phase.LOADING
        self.leases.state_changed(ready, loading=self.loading, loaded=loaded)
        if before.phase is Phase.STOPPING and before.stop is not None:
            self.last_unload = LastUnload(before.stop, self.state_time, self._forced)
        if before.phase is Phase.STOPPING:
            self.instance = None
        _log.info(
            "model",
            model=self.name,
            phase=phase.name,
            was=before.phase.name,
            why=self.state.message or None,
            backend=self.state.candidate or None,
        )

    def _perform(self, effect: effects.Effect) -> None:
        match effect:
            case effects.AskRoom(generation, candidate, more):
                self._timers.cancel()
                self._spawn(self._ask(generation, candidate, more), "ask room for")
            case effects.LeaveQueue():
                self._dependencies.scheduler.withdraw(self.name)
            case effects.Start(generation, candidate):
                assert self.entry is not None
                self._runner.start(generation, candidate, self.entry, self._begun)
            case effects.SendLoad():
                instance = self._current()
                options = self.reservation.current.options_for(instance.backend.name)
                self._runner.load(instance, self.state.candidate, options)
            case effects.AdmitWaiters(generation):
                self.backoffs.disarm(self.state.candidate)
                self._timers.later(self._dependencies.timeouts.stable, events.Stable(generation))
                if self.state.phase is Phase.READY:
                    self.leases.admit()
                self._stop_if_outdated(self._current())
            case effects.FailWaiters(failures):
                self._fail_waiters(failures)
            case effects.Drain():
                self._drain(self._current())
            case effects.CutCalls(failure=failure):
                self._current().end(errors.ended(self.name, self.state.message, failure))
            case effects.Detach():
                error = errors.ended(self.name, self.state.message, None)
                # In a later turn of the loop: the connection of the last call is still handling its last frame.
                asyncio.get_running_loop().call_soon(self._current().end, error)
            case effects.StopGroup(generation, graceful):
                self._runner.stop(lambda: self.instance, generation, graceful=graceful)
            case effects.ArmBackoff(candidate, failures, quarantine):
                self.backoffs.arm(candidate, failures, quarantine=quarantine)
            case effects.DisarmBackoff():
                self.backoffs.disarm()
            case effects.RefuseStop():
                drain = self._dependencies.timeouts.drain
                self._stops.answer(errors.busy(self._current(), drain))

    async def _ask(self, generation: int, candidate: str, more: bool) -> None:
        entry = self.entry
        assert entry is not None
        needs = await self.reservation.estimate(entry, candidate, more=more)
        if generation != self.state.generation or self.state.phase is not Phase.WAITING:
            return
        first = not self.state.failures
        if self.reservation.ask(needs, entry, candidate, generation=generation, first=first):
            self.leases.lack_room()

    def _begun(self, instance: Instance) -> None:
        self.instance = instance
        self.leases.begins(instance)
        self._forced = False

    def _stop(self, reason: StopReason, *, force: bool) -> None:
        instance = self.instance
        self._forced = (
            force and instance is not None and instance.calls.active + instance.calls.direct > 0
        )
        self._post(events.StopRequested(reason, force))

    def _drain(self, instance: Instance) -> None:
        instance.drain()  # in the same step as the check for leases
        if not instance.calls.holds:
            self._post(events.Drained(instance.generation))
        else:
            self._timers.later(
                self._dependencies.timeouts.drain, events.DrainTimedOut(instance.generation)
            )

    def _released(self, instance: Instance) -> None:
        if instance is not self.instance:
            return
        phase = self.state.phase
        if phase is Phase.READY:
            if self.leases.wanted:
                self.leases.admit()
            if not instance.calls.holds:
                self._stop_if_outdated(instance)
                if self._dependencies.scheduler.in_demand:
                    self._dependencies.scheduler.wake()
        elif phase is Phase.DRAINING and not instance.calls.holds:
            self._post(events.Drained(instance.generation))

    def _stop_if_outdated(self, instance: Instance) -> None:
        why = instance.leaving
        if why and not instance.calls.holds and self.state.phase is Phase.READY:
            self._stop(StopReason(Cause.CHANGED, why), force=False)

    def _tell_holders(self, instance: Instance, before: str) -> None:
        """Publish that direct clients, whose leases hold the instance between calls, should release it."""
        if instance.calls.direct and instance.leaving != before:
            self._changed(self)

    # Waiting calls

    def _fail_waiters(self, failures: tuple[Failure, ...]) -> None:
        if self.state.phase is Phase.BACKOFF and self.state.after is After.CRASHED:
            # These calls did not see the crash; for them it is the reason why they must wait.
            self.leases.fail(self.backoffs.error(self.state))
        else:
            every = (*_left_out(self.state, failures), *failures)
            self.leases.fail(errors.all_failed(self.name, every, self.not_tried))

    # Helpers

    def _current(self) -> Instance:
        assert self.instance is not None
        return self.instance

    def _spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        return self._dependencies.tasks.spawn(work, name=f"{what} {self.name}")


def _has_room(phase: Phase) -> bool:
    return phase not in RESTING and phase is not Phase.WAITING


def _left_out(state: Lifecycle, failures: tuple[Failure, ...]) -> Iterable[Failure]:
    """Return why other candidates were not tried in the round that failed."""
    if failures != state.failures:
        return ()  # the wait ended for an unload or lack of memory; earlier failures are not the cause
    tried = {failure.candidate for failure in failures}
    return (each.failure for each in state.penalties if each.candidate not in tried)
