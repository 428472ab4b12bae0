"""The loader: the operations of the control plane and the gateway, over all models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from contextlib import suppress

from services.common.errors import (
    CorralError,
    ModelBusyError,
    ModelNotFoundError,
    ModelNotLoadedError,
    ModelNotNamedError,
    Resource,
    ShuttingDownError,
)
from services.common.process.logging import get_logger
from services.common.tasks import Background
from services.loader.admission.connection_lease import CountedCalls
from services.loader.admission.meter import ANYONE, Caller, CallMeter
from services.loader.admission.waiters import expired
from services.loader.backends.backend import Backend
from services.loader.backends.catalog import BackendCatalog
from services.loader.instances.instance import Instance, Lease
from services.loader.lifecycle.events import Cause, StopReason
from services.loader.lifecycle.state import RESTING, Phase
from services.loader.logs.log_book import LogNews, LogQuery
from services.loader.models.catalog import ModelCatalog, ModelEntry
from services.loader.models.pins import Pins
from services.loader.models.watcher import Follower
from services.loader.scheduling.ledger import Ledger
from services.loader.scheduling.scheduler import Scheduler
from services.loader.supervision.fleet import Fleet
from services.loader.supervision.restarts import Restarts
from services.loader.supervision.supervisor import Supervisor
from services.loader.views.change_log import ChangeLog
from services.loader.views.forecast import Forecast
from services.loader.views.model import ModelView
from services.loader.views.models import ModelEndpoint, Views

from .live_settings import LiveSettings

_log = get_logger(__name__)

Listener = Callable[[str, ModelView | None], None]


class Loader:
    """All models: one supervisor for each model that was ever requested."""

    def __init__(
        self,
        *,
        models: ModelCatalog,
        backends: BackendCatalog,
        fleet: Fleet,
        scheduler: Scheduler,
        views: Views,
        forecast: Forecast,
        changes: ChangeLog[ModelView],
        calls: CallMeter,
        pins: Pins,
        ledger: Ledger,
        settings: LiveSettings,
        tasks: Background,
        force_in_the_end: bool = False,
        leave_ready: bool = False,
    ) -> None:
        """Nothing is started before the first call that needs it.

        `force_in_the_end`: an unload cuts the calls that are still running after the drain timeout.
        `leave_ready`: idle ready instances are left for the next loader on close.
        """
        self._leave_ready = leave_ready
        self._force_in_the_end = force_in_the_end
        self._scheduler = scheduler
        self._calls = calls
        self._pins = pins
        self._ledger = ledger
        self.changes = changes
        self._models = models
        self._backends = backends
        self._fleet = fleet
        self._tasks = tasks
        self._refusing = ""
        self._views = views
        self._forecast = forecast
        self._restarts = Restarts(
            pinned=views.pinned,
            begin_load=self.begin_load,
            settings=settings,
            tasks=tasks,
        )
        self._follower = Follower(
            models,
            active=fleet.names,
            changed=self._publish,
            revision_is=self._revision_is,
        )
        self._listeners: list[Listener] = []
        fleet.listen(self._changed)
        scheduler.listen(self._publish)

    def listen(self, listener: Listener) -> None:
        """Call `listener` after every change of a model with its name and view; None if it is gone."""
        self._listeners.append(listener)

    # Following the models folder

    def refresh(self) -> None:
        """Scan the models folder, and publish models that were added or removed.

        A model whose configuration or file changed is unloaded as soon as no call holds it; the next
        call loads it again. Earlier failures of a changed model no longer count.
        """
        self._follower.refresh()

    async def follow_folder(self, interval: float) -> None:
        """Refresh after each change, and every `interval` seconds, until cancelled."""
        await self._follower.follow(interval)

    def _revision_is(self, name: str, revision: str) -> None:
        if supervisor := self._fleet.get(name):
            supervisor.configuration_changed(revision)
            entry = supervisor.entry
            if supervisor.state.phase is Phase.WAITING and entry and entry.revision != revision:
                with suppress(
                    CorralError
                ):  # the waiting calls get the error when the load should start
                    self.begin_load(name)

    # Loading and unloading

    async def acquire(self, name: str, caller: Caller = ANYONE) -> Lease:
        """Return a lease for a call on the model, loading it first if necessary.

        Raises QueueFullError if the limits on calls are reached, DeadlineTooShortError if the call would
        still wait at its deadline, and DeadlineError if the deadline has passed.
        """
        if caller.deadline is not None and caller.deadline <= time.monotonic():
            raise expired()
        supervisor = self._running(name)
        if supervisor is not None and not self._refusing:
            if lease := supervisor.leases.take(calls=True, client=caller.client):
                return lease
            if supervisor.joinable:
                return await supervisor.leases.join(caller)
        # Before the expensive part; whether a waiting call is refused instead is decided later.
        self._calls.check(caller.client)
        entry, supervisor, candidates = self._prepare(name)
        return await supervisor.loads.acquire(entry, candidates, calls=True, caller=caller)

    async def hold(self, name: str) -> Lease:
        """Return a lease that holds the model without being a call, loading it first if necessary.

        It takes no slot, waits in no queue and counts towards no limit; `Lease.use` makes it count as use.
        """
        entry, supervisor, candidates = self._prepare(name)
        return await supervisor.loads.acquire(entry, candidates, calls=False)

    def count_calls(self, instance: Instance, *, stands_still: Callable[[], float]) -> CountedCalls:
        """Return the lease that counts the calls of a connection that bypasses the gateway.

        `stands_still` returns since when the backend has owed data, by the monotonic clock.
        """
        supervisor = self._fleet.ensure(instance.model)
        return supervisor.leases.count_calls(instance, stands_still=stands_still)

    def entries(self) -> Mapping[str, ModelEntry]:
        """Return all models by name as of the last scan, usable or not."""
        return self._follower.models.by_name

    def probe(self, name: str) -> Lease | None:
        """Return a lease that neither counts nor holds, if the model is ready now; never loads."""
        supervisor = self._running(name) or self._fleet.get(self._models.resolve(name).name)
        return supervisor.leases.probe() if supervisor else None

    async def load(self, name: str, *, reset_backoff: bool = False) -> ModelView:
        """Load the model and wait until it is ready."""
        entry, supervisor, candidates = self._prepare(name)
        if reset_backoff:
            supervisor.reset()
        with await supervisor.loads.acquire(entry, candidates, calls=False) as instance:
            if not instance.memory:
                await self._ledger.take_measure(instance)
            return self._views.of(entry)

    def draining(self, instance: Instance) -> str:
        """Why the instance is being unloaded, for people; empty if it is not."""
        supervisor = self._fleet.get(instance.model)
        if supervisor is None or supervisor.state.phase is not Phase.DRAINING:
            return ""
        return supervisor.state.message if supervisor.instance is instance else ""

    def wanting_room(self) -> str:
        """Which model waits for room, for people; empty if none does."""
        queue = self._scheduler.queue
        return f"model {queue[0].name!r} waits for room" if queue else ""

    def begin_load(self, name: str, *, reset_backoff: bool = False) -> ModelView:
        """Begin to load the model."""
        entry, supervisor, candidates = self._prepare(name)
        if reset_backoff:
            supervisor.reset()
        supervisor.loads.begin(entry, candidates)
        return self._views.of(entry)

    def preload(self, names: Iterable[str]) -> None:
        """Begin to load these models; a failure is logged and does not affect the others."""
        for name in names:
            self._tasks.spawn(self._preload(name), name=f"preload {name}")

    async def _preload(self, name: str) -> None:
        try:
            await self.load(name)
        except CorralError as error:
            _log.error("a model cannot be loaded at the start", model=name, why=str(error))

    async def unload(
        self, name: str, *, force: bool, reason: StopReason | None = None
    ) -> ModelView:
        """Unload the model; returns when its process group is gone."""
        # A model whose configuration has become invalid may still run, and can be unloaded.
        supervisor = self._running(name) or self._fleet.get(self._canonical_name(name))
        if supervisor is None:
            return self.get(name)
        reason = reason or StopReason(Cause.REQUESTED, "unloaded on request")
        try:
            await supervisor.stop(reason, force=force)
        except ModelBusyError:
            if not self._force_in_the_end:
                raise
            await supervisor.stop(reason, force=True)
        try:
            return self.get(supervisor.name)
        except ModelNotFoundError:  # its file was deleted while it ran
            return self._views.of(supervisor.entry or ModelEntry(supervisor.name))

    def pin(self, name: str, pinned: bool) -> ModelView:
        """Pin or unpin the model, across restarts."""
        name = self._canonical_name(name)
        self._pins.set(name, pinned)
        self._views.forget(name)
        self._publish(name)
        self._scheduler.wake()
        return self._views.get(name)

    async def drain(self, timeout: float) -> int:
        """Refuse new calls, give running ones `timeout` seconds, unload all; return how many were cut."""
        self._refusing = "the loader drains and takes no more calls"
        self._restarts.refuse()
        reason = StopReason(Cause.SHUTDOWN, "the loader drains")
        running = [each for each in self._fleet if each.state.phase not in RESTING]
        soft = [asyncio.ensure_future(_stop_gently(each, reason)) for each in running]
        cut = 0
        try:
            if soft:
                await asyncio.wait(soft, timeout=timeout)
            cut = sum(each.instance.calls.active for each in running if each.instance)
            await self._stop_all(reason)
        finally:
            for stop in soft:
                stop.cancel()
            await asyncio.gather(*soft, return_exceptions=True)
        return cut

    async def _stop_all(self, reason: StopReason) -> None:
        stops = [supervisor.stop(reason, force=True) for supervisor in self._fleet]
        await asyncio.gather(*stops, return_exceptions=True)

    def report_lost(self, instance: Instance, error: CorralError) -> None:
        """Called when an external backend stops answering; the next call connects again."""
        self._fleet.ensure(instance.model).report_lost(instance, error)

    async def close(self) -> None:
        """Refuse new calls and end every backend, except those left for the next loader."""
        self._refusing = "the loader stops and loads no more models"
        self._restarts.close()
        if self._leave_ready:
            for supervisor in self._fleet:
                if await supervisor.leave():
                    self._fleet.remove(supervisor.name)
        await self._stop_all(StopReason(Cause.SHUTDOWN, "the loader stops"))

    # Reading

    def get(self, name: str) -> ModelView:
        """Return one model, even if it runs but its file is gone. Raises ModelNotFoundError."""
        return self._views.get(name)

    def backends(self) -> list[Backend]:
        """Return the installed backends."""
        return list(self._backends.backends().values())

    def logs(self, name: str, query: LogQuery) -> AsyncGenerator[LogNews, None]:
        """Return what the model's backends wrote. Raises ModelNotFoundError."""
        supervisor = self._running(name) or self._fleet.ensure(self._canonical_name(name))
        return supervisor.logs.read(query)

    # Routing

    def route(self, named: str | None, identity: str | None) -> str:
        """Return the model that a call is for. Raises ModelNotNamedError."""
        if named:
            return named
        if identity:
            return identity
        if only := self._models.only_model():
            return only
        raise ModelNotNamedError(
            "the call names no model, and there is not exactly one: send its name as metadata"
            " `corral-model`, or as the request's ModelIdentity where it has one"
        )

    def not_loaded(self, name: str) -> ModelNotLoadedError:
        """Return the error for a call that needs a loaded model and must not load it."""
        return ModelNotLoadedError(
            f"model {name!r} is not loaded; this call never loads one: use LoadModel first",
            resource=Resource("model", name),
        )

    # Helpers

    def _prepare(self, name: str) -> tuple[ModelEntry, Supervisor, tuple[str, ...]]:
        if self._refusing:
            raise ShuttingDownError(self._refusing)
        entry = self._models.resolve(name)
        selection = self._forecast.select(entry)
        supervisor = self._fleet.ensure(entry.name)
        supervisor.not_tried = selection.excluded
        return entry, supervisor, selection.names

    def _running(self, name: str) -> Supervisor | None:
        """Return the supervisor of a model that was requested before, without scanning the folder."""
        return self._fleet.get(self._follower.known_as(name) or name)

    def _canonical_name(self, name: str) -> str:
        """Return the name of the model with this name, alias or file, usable or not."""
        entry = self._models.find(name)
        return entry.config.alias or entry.name

    def endpoint_changed(self, name: str, endpoint: ModelEndpoint | None, error: str) -> None:
        """Publish a model's endpoint, and why it lacks an address that it should have."""
        self._views.endpoint_is(name, endpoint, error)
        self._publish(name)

    def backends_changed(self, names: Collection[str]) -> None:
        """Called when these backends were added, removed or replaced."""
        for supervisor in self._fleet:
            supervisor.backends_changed(names)

    def _changed(self, supervisor: Supervisor) -> None:
        self._publish(supervisor.name)
        instance = supervisor.instance
        if supervisor.state.phase is Phase.READY and instance and not instance.memory:
            self._tasks.spawn(self._ledger.take_measure(instance), name=f"measure {instance.model}")
        self._restarts.look(supervisor)

    def _publish(self, name: str) -> None:
        supervisor = self._fleet.get(name)
        # Without a folder scan: this is called at every transition, and for every model at startup.
        entry = self._follower.models.by_name.get(name)
        if entry is None and supervisor is not None:
            running = supervisor.state.phase not in RESTING
            entry = supervisor.entry if running else self._models.models().get(name)
        model = self._views.of(entry) if entry is not None else None
        self.changes.append(name, model)
        for listener in self._listeners:
            listener(name, model)


async def _stop_gently(supervisor: Supervisor, reason: StopReason) -> None:
    """Unload when the running calls have ended, however long they take."""
    while True:
        try:
            await supervisor.stop(reason, force=False)
        except ModelBusyError:
            continue  # each attempt lasts for the drain timeout
        return
