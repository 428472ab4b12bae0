"""What takes time in the life of an instance: its start, its load, its end. Each reports an event.

The supervisor decides; this carries out. Nothing here changes the state of the model.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from services.common.errors import (
    BackendStartError,
    CorralError,
    DeadlineError,
    ModelLoadError,
)
from services.common.process.logging import get_logger
from services.loader.backends.catalog import Backend
from services.loader.instances.errors import exited, lacks_memory
from services.loader.instances.instance import Connection, Instance, LoadAnswer
from services.loader.instances.stall import StalledError, unless_stalled
from services.loader.instances.starter import STDERR_LINES
from services.loader.lifecycle.events import (
    Answered,
    AttemptFailed,
    Event,
    Exited,
    Failure,
    GroupGone,
    Loaded,
)
from services.loader.logs.log_book import Level, LogBook, Stream
from services.loader.models.catalog import ModelEntry
from services.loader.processes.interface import BackendProcess

_log = get_logger(__name__)

_GIB = 1024**3
_LAST_LINES = 0.05
"""Seconds to drain the pipes of an ended process; more is needed only if a helper holds them open."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The timeouts of a model's lifecycle, in seconds."""

    load: float
    load_per_gib: float
    load_stall: float
    drain: float
    free: float
    stable: float
    exit_cause: float
    quarantine: float


class Starter(Protocol):
    """Starts a backend, or connects to one, and waits until it answers."""

    async def start(self, instance: Instance, logs: LogBook) -> Connection:
        """Fill in the instance's process and address; return the connection. Raises CorralError."""
        ...

    def loaded(self, instance: Instance) -> None:
        """Record the instance as loaded: the next loader can adopt it."""
        ...

    async def leave(self, instance: Instance) -> bool:
        """Leave the instance for the next loader; False if it depends on this one."""
        ...

    async def stop(self, instance: Instance, *, graceful: bool) -> bool:
        """End the started instance, also after a failed start; True when no process is left."""
        ...


class Options(Protocol):
    """Computes the options sent to a backend."""

    def sent(self, entry: ModelEntry, backend: str) -> Mapping[str, Any]:
        """Return the options by the field of LoadModel's request. Blocking."""
        ...


class Activity(Protocol):
    """Detects whether an instance's processes are doing anything."""

    def __call__(self, instance: Instance) -> Awaitable[object]:
        """Return something that changes whenever the instance's processes do anything."""
        ...


Post = Callable[[Event], None]


class Runner:
    """Starts, loads, watches and stops the instances of one model."""

    def __init__(
        self,
        name: str,
        *,
        starter: Starter,
        find_backend: Callable[[str], Backend],
        models_path: Path,
        timeouts: Timeouts,
        logs: LogBook,
        options: Options,
        activity: Activity,
        released: Callable[[Instance], Awaitable[None]],
        post: Post,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        """`released` returns when the memory of an ended instance is seen to be free."""
        self._name = name
        self._starter = starter
        self._find_backend = find_backend
        self._models_path = models_path
        self._timeouts = timeouts
        self._logs = logs
        self._options = options
        self._activity = activity
        self._released = released
        self._post = post
        self._spawn = spawn
        self._work: asyncio.Task[None] | None = None
        """The start or load in progress."""
        self._exit: asyncio.Task[None] | None = None
        """Waits for the exit of the current process; None without a process."""
        self._exit_reported = 0
        """The generation whose exit was reported last."""

    # Starting and loading

    def start(
        self, generation: int, candidate: str, entry: ModelEntry, begun: Callable[[Instance], None]
    ) -> None:
        """Start a backend; `begun` is called with the instance. Posts `Answered` or `AttemptFailed`."""
        self._work = self._spawn(self._start(generation, candidate, entry, begun), "start")

    async def _start(
        self, generation: int, candidate: str, entry: ModelEntry, begun: Callable[[Instance], None]
    ) -> None:
        try:
            backend = self._find_backend(candidate)
            if backend.error:
                raise BackendStartError(f"backend {backend.name} cannot be used: {backend.error}")
        except CorralError as error:
            self._fail(generation, candidate, error, permanent=True)
            return
        instance = Instance(uuid.uuid4().hex, generation, self._name, backend, entry, time.time())
        begun(instance)
        try:
            instance.connect(await self._starter.start(instance, self._logs))
        except CorralError as error:
            self._fail(generation, candidate, error)
            return
        except Exception as error:  # noqa: BLE001 - the waiting calls need an error in any case
            _log.exception("starting a backend failed", model=self._name, backend=candidate)
            text = f"starting {candidate} failed: {type(error).__name__}: {error}"
            self._fail(generation, candidate, BackendStartError(text))
            return
        self.watch(instance)
        self._post(Answered(generation))

    def load(self, instance: Instance, candidate: str, options: Mapping[str, Any] | None) -> None:
        """Make the backend load the model. Posts `Loaded` or `AttemptFailed`.

        `options` are those of the reservation; if None, they are computed now.
        """
        self._work = self._spawn(self._load(instance, candidate, options), "load")

    async def _load(
        self, instance: Instance, candidate: str, options: Mapping[str, Any] | None
    ) -> None:
        generation = instance.generation
        try:
            answer = await self._read_model(instance, options)
        except CorralError as error:
            # The exit of the process explains more than the broken connection does.
            if await self._exit_seen(instance, self._timeouts.exit_cause):
                return
            self._fail(generation, candidate, ModelLoadError(f"could not load model: {error}"))
            return
        except Exception as error:  # noqa: BLE001 - the waiting calls need an error in any case
            _log.exception("loading failed", model=self._name, backend=candidate)
            text = f"could not load model: {type(error).__name__}: {error}"
            self._fail(generation, candidate, ModelLoadError(text))
            return
        if not answer.success:
            text = f"could not load model (no success): {answer.message}"
            self._fail(generation, candidate, ModelLoadError(text))
            return
        instance.mark_ready(answer.message)
        self._starter.loaded(instance)
        self._post(Loaded(generation))

    async def _read_model(
        self, instance: Instance, options: Mapping[str, Any] | None
    ) -> LoadAnswer:
        if options is None:
            name = instance.backend.name
            options = await asyncio.to_thread(self._options.sent, instance.entry, name)
        assert instance.connection is not None
        limit = self._timeouts.load + self._timeouts.load_per_gib * self._size_gib(instance)
        loading = instance.connection.load(options, limit)
        if instance.process is None:
            return await loading  # the activity of an external backend cannot be seen
        try:
            return await unless_stalled(
                loading, lambda: self._activity(instance), self._timeouts.load_stall
            )
        except StalledError:
            raise DeadlineError(
                f"the backend has done nothing for {self._timeouts.load_stall:g} s: no processor"
                " time, no reading, no line in its log; raise load_stall_timeout if that is normal"
            ) from None

    def _size_gib(self, instance: Instance) -> float:
        try:
            return (self._models_path / instance.entry.config.model).stat().st_size / _GIB
        except (OSError, ValueError):
            return 0.0

    # Ending

    def watch(self, instance: Instance) -> None:
        """Post `Exited` when the process has ended by itself."""
        self._exit = None
        if instance.process is not None:
            self._exit = self._spawn(self._watch(instance, instance.process), "watch")

    async def _watch(self, instance: Instance, process: BackendProcess) -> None:
        how = await process.wait()
        if instance.stopping:
            return
        await process.drain_output(_LAST_LINES)
        lines = self._logs.tail(STDERR_LINES, generation=instance.generation, stream=Stream.STDERR)
        error = exited(instance, how, lines, loading=instance.ready is None)
        failure = Failure(
            instance.backend.name,
            error,
            out_of_memory=how.out_of_memory or lacks_memory("\n".join(lines)),
        )
        text = f"{instance.backend.name} {how}"
        self._logs.append(Stream.LOADER, text, instance.generation, Level.ERROR)
        self._exit_reported = instance.generation
        self._post(Exited(instance.generation, failure))

    async def _exit_seen(self, instance: Instance, timeout: float) -> bool:
        """Whether the exit of the process was reported, after waiting for it for `timeout` seconds.

        False also if watching it failed: the failure of the load must be reported then.
        """
        if self._exit is None:
            return False
        await asyncio.wait([self._exit], timeout=timeout)
        return instance.stopping or self._exit_reported == instance.generation

    def stop(
        self, current: Callable[[], Instance | None], generation: int, *, graceful: bool
    ) -> None:
        """End the instance, whatever it is doing. Posts `GroupGone` when no process of it is left."""
        if instance := current():
            instance.mark_stopping()
        self._spawn(self._stop(current, generation, graceful), "stop")

    async def _stop(
        self, current: Callable[[], Instance | None], generation: int, graceful: bool
    ) -> None:
        if self._work is not None and self._work is not asyncio.current_task():
            self._work.cancel()
            await asyncio.wait([self._work])
        # Only now: the start that was just cancelled may have created an instance meanwhile.
        if instance := current():
            instance.mark_stopping()
            try:
                await self._end(instance, graceful)
            except Exception:  # noqa: BLE001 - an unexpected error must not leave calls waiting forever
                _log.exception("ending a backend failed", model=self._name, pid=instance.pid)
            self._logs.append(Stream.LOADER, "stopped", generation, Level.INFO)
        self._post(GroupGone(generation))

    async def _end(self, instance: Instance, graceful: bool) -> None:
        connection = instance.connection
        if graceful and connection is not None:
            try:
                await connection.free(self._timeouts.free)
            except CorralError as error:
                _log.debug("Free failed", model=self._name, why=str(error))
        if connection is not None:
            await connection.close()
        if await self._starter.stop(instance, graceful=graceful):
            await self._released(instance)
        else:
            _log.error("processes of a backend cannot be ended", model=self._name, pid=instance.pid)

    # Helpers

    def _fail(
        self, generation: int, candidate: str, error: CorralError, *, permanent: bool = False
    ) -> None:
        self._logs.append(Stream.LOADER, str(error), generation, Level.ERROR)
        memory = lacks_memory(str(error))
        self._post(AttemptFailed(generation, Failure(candidate, error, permanent, memory)))
