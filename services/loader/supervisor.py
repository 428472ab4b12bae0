"""Drives one model through its lifecycle: performs the effects, and reports what happens as events.

Everything that changes the state goes through `_post`, which runs to the end without awaiting, so no
two events ever interleave. Whatever takes time runs in a task of its own and comes back as an event.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from services.common.backoff import Backoff
from services.common.errors import (
    BackendStartError,
    CorralError,
    LoadBackoffError,
    ModelLoadError,
)
from services.common.logs import get_logger
from services.common.tasks import Background

from . import causes
from . import lifecycle as life
from .backend_catalog import Backend
from .instance import Connection, Instance, Lease
from .lifecycle import Failure, Lifecycle, Phase
from .logs import LogBook, Stream
from .model_catalog import ModelEntry
from .waiters import LeaseWaiters, StopWaiters

_log = get_logger(__name__)

_GIB = 1024**3
_LAST_LINES = 0.05
"""Seconds for the pipes of an ended process to run dry; longer only if a helper holds them open."""

STDERR_LINES = 5
"""Last lines of stderr to keep with the cause of an end: enough for an exception, short enough to read."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The named waits of a supervisor, in seconds."""

    load: float
    load_per_gib: float
    drain: float
    free: float
    stable: float
    exit_cause: float


class Starter(Protocol):
    """Starts a backend, or connects to one, and waits until it answers."""

    async def start(self, instance: Instance, logs: LogBook) -> Connection:
        """Fill in the instance's process and address; return the connection. Raises CorralError."""
        ...

    async def stop(self, instance: Instance, *, graceful: bool) -> bool:
        """End what `start` began, also after a failure; True when nothing is left."""
        ...


class Supervisor:
    """One model, over all its instances."""

    def __init__(
        self,
        name: str,
        *,
        starter: Starter,
        find_backend: Callable[[str], Backend],
        models_path: Path,
        timeouts: Timeouts,
        backoff: Backoff,
        logs: LogBook,
        tasks: Background,
        changed: Callable[[Supervisor], None],
    ) -> None:
        """`changed` is called after every transition, when the state can be read."""
        self.name = name
        self.logs = logs
        self.state = Lifecycle()
        self.state_time = time.time()
        self.retry_at: float | None = None
        self.instance: Instance | None = None
        self._starter = starter
        self._find_backend = find_backend
        self._models_path = models_path
        self._timeouts = timeouts
        self._backoff = backoff
        self._tasks = tasks
        self._changed = changed
        self.entry: ModelEntry | None = None
        """The model as it was when its load began."""
        self._waiters = LeaseWaiters()
        self._stops = StopWaiters()
        self._events: deque[life.Event] = deque()
        self._posting = False
        self._timers: list[asyncio.TimerHandle] = []
        self._work: asyncio.Task[None] | None = None
        """The start or load in progress."""

    # What others ask for

    async def acquire(self, entry: ModelEntry, candidates: tuple[str, ...]) -> Lease:
        """Return a lease on the ready model, loading it first; callers of the same load share it.

        A caller that is cancelled leaves the load alone. Raises LoadBackoffError, or what the load
        failed with.
        """
        if lease := self.try_acquire():
            return lease
        self._refuse_while_backing_off(entry)
        if not self.loading:
            self.entry = entry
        joining = self.join()
        self._post(life.LoadRequested(candidates))
        return await joining

    def join(self) -> Coroutine[Any, Any, Lease]:
        """Wait for the load in progress; the place among those who wait is taken at once."""
        return self._waiters.join()

    @property
    def loading(self) -> bool:
        """Whether a load is in progress, which others may join."""
        return self.state.phase in (Phase.STARTING, Phase.LOADING)

    def try_acquire(self) -> Lease | None:
        """Return a lease if the model is ready now."""
        if self.state.phase is not Phase.READY or self.instance is None:
            return None
        return self._lease()

    def begin_load(self, entry: ModelEntry, candidates: tuple[str, ...]) -> None:
        """Begin to load, without waiting for it. Raises LoadBackoffError."""
        if self.state.phase is Phase.READY:
            return
        self._refuse_while_backing_off(entry)
        if not self.loading:
            self.entry = entry
        self._post(life.LoadRequested(candidates))

    async def stop(self, reason: str, *, force: bool) -> None:
        """Unload and wait until the process group is gone. Raises ModelBusyError. Idempotent."""
        if self.state.phase in life.RESTING:
            return
        stopped = self._stops.join()
        self._post(life.StopRequested(reason, force))
        await stopped

    def report_lost(self, instance: Instance, error: CorralError) -> None:
        """An external backend does not answer any more; the next call connects anew."""
        self._post(life.Exited(instance.generation, Failure(instance.backend.name, error)))

    def configuration_is(self, revision: str) -> None:
        """Take note of the configuration's revision now; an instance of another one is stopped when idle."""
        if self.state.phase in (Phase.BACKOFF, Phase.FAILED):
            if self.entry is not None and self.entry.revision != revision:
                self._post(life.Changed())
        elif self.instance is not None:
            self.instance.outdated = self.instance.entry.revision != revision
            self._stop_if_outdated(self.instance)

    # The machine

    def _post(self, event: life.Event) -> None:
        self._events.append(event)
        if self._posting:
            return  # an effect that reports at once; the loop below takes it next
        self._posting = True
        try:
            while self._events:
                event = self._events.popleft()
                before = self.state
                self.state, effects = life.next(before, event)
                if self.state.phase is not before.phase:
                    self.state_time = time.time()
                    _log.info(
                        "model",
                        model=self.name,
                        phase=self.state.phase.name,
                        was=before.phase.name,
                        why=self.state.message or None,
                        backend=self.state.candidate or None,
                    )
                for effect in effects:
                    self._perform(effect)
                if isinstance(event, life.GroupGone) and before.phase is Phase.STOPPING:
                    self._stops.answer(None)
                if self.state != before:
                    self._changed(self)
        finally:
            self._posting = False

    def _perform(self, effect: life.Effect) -> None:
        match effect:
            case life.Start(generation, candidate):
                self._start(generation, candidate)
            case life.SendLoad():
                self._work = self._spawn(self._load(self._current()), "load")
            case life.AdmitWaiters():
                self._waiters.admit(self._lease)
            case life.FailWaiters(failures):
                self._fail_waiters(failures)
            case life.Drain():
                self._drain(self._current())
            case life.CutCalls(failure=failure):
                self._current().end(causes.ended(self.name, self.state.message, failure))
            case life.StopGroup(generation, graceful):
                self._spawn(self._stop(generation, graceful), "stop")
            case life.ArmBackoff(generation, rounds):
                delay = self._backoff.delay(rounds)
                self.retry_at = time.time() + delay
                self._later(delay, life.BackoffEnded(generation))
            case life.RefuseStop():
                active = self._current().active
                self._stops.answer(causes.busy(self.name, active, self._timeouts.drain))

    def _start(self, generation: int, candidate: str) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self.retry_at = None
        self._work = self._spawn(self._run(generation, candidate), "start")

    async def _run(self, generation: int, candidate: str) -> None:
        try:
            instance = self._new_instance(generation, candidate)
        except CorralError as error:
            self._fail(generation, candidate, error, permanent=True)
            return
        self.instance = instance
        try:
            instance.connection = await self._starter.start(instance, self.logs)
        except CorralError as error:
            self._fail(generation, candidate, error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, the waiters must hear of it
            _log.exception("starting a backend failed", model=self.name, backend=candidate)
            text = f"starting {candidate} failed: {type(error).__name__}: {error}"
            self._fail(generation, candidate, BackendStartError(text))
            return
        if instance.process is not None:
            self._spawn(self._watch(instance), "watch")
        self._post(life.Answered(generation))

    def _new_instance(self, generation: int, candidate: str) -> Instance:
        backend = self._find_backend(candidate)
        if backend.error:
            raise BackendStartError(f"backend {backend.name} cannot be used: {backend.error}")
        assert self.entry is not None
        return Instance(uuid.uuid4().hex, generation, self.name, backend, self.entry, time.time())

    async def _load(self, instance: Instance) -> None:
        assert instance.connection is not None
        generation, candidate = instance.generation, instance.backend.name
        timeout = self._timeouts.load + self._timeouts.load_per_gib * self._size_gib(instance)
        try:
            answer = await instance.connection.load(instance.entry, candidate, timeout)
        except CorralError as error:
            # A process that died under LoadModel says more than the broken connection does.
            if instance.process and await instance.cause(self._timeouts.exit_cause):
                return  # the event of its end is on its way
            self._fail(generation, candidate, ModelLoadError(f"could not load model: {error}"))
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, the waiters must hear of it
            _log.exception("loading failed", model=self.name, backend=candidate)
            text = f"could not load model: {type(error).__name__}: {error}"
            self._fail(generation, candidate, ModelLoadError(text))
            return
        if not answer.success:
            text = f"could not load model (no success): {answer.message}"
            self._fail(generation, candidate, ModelLoadError(text))
            return
        instance.ready = time.time()
        instance.load_message = answer.message
        self._later(self._timeouts.stable, life.Stable(generation))
        self._post(life.Loaded(generation))

    async def _watch(self, instance: Instance) -> None:
        assert instance.process is not None
        how = await instance.process.wait()
        if instance.generation != self.state.generation or self.state.phase is Phase.STOPPING:
            return
        await instance.process.drain_output(_LAST_LINES)
        lines = self.logs.tail(STDERR_LINES, generation=instance.generation, stream=Stream.STDERR)
        error = causes.exited(instance, how, lines, loading=self.state.phase is Phase.LOADING)
        instance.end(error)
        self._post(life.Exited(instance.generation, Failure(instance.backend.name, error)))

    async def _stop(self, generation: int, graceful: bool) -> None:
        if self._work is not None and self._work is not asyncio.current_task():
            self._work.cancel()
            await asyncio.wait([self._work])
        instance = self.instance
        if instance is not None:
            instance.end(causes.ended(self.name, self.state.message, None))
            await self._end(instance, graceful)
            self.logs.append(Stream.LOADER, "stopped", generation)
            self.instance = None
        self._post(life.GroupGone(generation))

    async def _end(self, instance: Instance, graceful: bool) -> None:
        connection = instance.connection
        if graceful and connection is not None:
            try:
                await connection.free(self._timeouts.free)
            except CorralError as error:
                _log.debug("Free failed", model=self.name, why=str(error))
        if connection is not None:
            await connection.close()
        if not await self._starter.stop(instance, graceful=graceful):
            _log.error("processes of a backend cannot be ended", model=self.name, pid=instance.pid)

    def _drain(self, instance: Instance) -> None:
        if not instance.leases:
            self._post(life.Drained(instance.generation))
        else:
            self._later(self._timeouts.drain, life.DrainTimedOut(instance.generation))

    def _released(self, instance: Instance) -> None:
        if not instance.leases and self.state.phase is Phase.DRAINING:
            self._post(life.Drained(instance.generation))
        elif instance.outdated and instance is self.instance:
            self._stop_if_outdated(instance)

    def _stop_if_outdated(self, instance: Instance) -> None:
        if instance.outdated and not instance.leases and self.state.phase is Phase.READY:
            self._post(life.StopRequested("its configuration or file changed"))

    # Those who wait

    def _lease(self) -> Lease:
        return Lease(self._current(), self._released)

    def _fail_waiters(self, failures: tuple[Failure, ...]) -> None:
        error: CorralError = causes.all_failed(self.name, failures)
        if self.state.phase is Phase.BACKOFF and self.state.after is life.After.CRASHED:
            # They did not see the crash; to them it is the reason why they must wait.
            error = self._backing_off()
        self._waiters.fail(error)

    def _refuse_while_backing_off(self, entry: ModelEntry) -> None:
        if self.state.phase not in (Phase.BACKOFF, Phase.FAILED):
            return
        if self.entry is not None and self.entry.revision != entry.revision:
            self._post(life.Changed())
            return
        if self.state.phase is Phase.BACKOFF and self.retry_at is not None:
            raise self._backing_off()

    def _backing_off(self) -> LoadBackoffError:
        assert self.retry_at is not None
        left = max(self.retry_at - time.time(), 0.001)
        return causes.backing_off(self.name, left, self.state.failures)

    # Helpers

    def _current(self) -> Instance:
        assert self.instance is not None
        return self.instance

    def _fail(
        self, generation: int, candidate: str, error: CorralError, *, permanent: bool = False
    ) -> None:
        self.logs.append(Stream.LOADER, str(error), generation)
        self._post(life.AttemptFailed(generation, Failure(candidate, error, permanent)))

    def _size_gib(self, instance: Instance) -> float:
        try:
            return (self._models_path / instance.entry.config.model).stat().st_size / _GIB
        except (OSError, ValueError):
            return 0.0

    def _later(self, delay: float, event: life.Event) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(delay, self._post, event))

    def _spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        return self._tasks.spawn(work, name=f"{what} {self.name}")
