"""Previews a model's next load, and reports the capacity, without changing anything."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from services.common.errors import BackendNotFoundError
from services.loader.admission.meter import CallMeter
from services.loader.backends.catalog import BackendCatalog
from services.loader.backends.selection import Selection, select_from
from services.loader.lifecycle.state import RESTING, Phase
from services.loader.live_settings import LiveSettings
from services.loader.memory.reservation import Reservation
from services.loader.models.catalog import ModelCatalog, ModelEntry
from services.loader.scheduling.eviction import Plan
from services.loader.scheduling.ledger import Ledger
from services.loader.scheduling.scheduler import RoomRequest, Scheduler
from services.loader.supervision.fleet import Fleet

from .capacity import Capacity, NextLoad


class Forecast:
    """Previews loads and reports the capacity, for all models."""

    def __init__(
        self,
        models: ModelCatalog,
        backends: BackendCatalog,
        fleet: Fleet,
        *,
        scheduler: Scheduler,
        ledger: Ledger,
        settings: LiveSettings,
        calls: CallMeter,
    ) -> None:
        """The arguments are only read."""
        self._models = models
        self._backends = backends
        self._fleet = fleet
        self._scheduler = scheduler
        self._ledger = ledger
        self._settings = settings
        self._calls = calls

    def select(self, entry: ModelEntry) -> Selection:
        """Return the backends that a load of the model tries, and why others are none."""
        model_file = self._models.folder / entry.config.model
        return select_from(self._backends, entry.config, model_file)

    def next_load(self, name: str) -> NextLoad:
        """Return a preview of the model's next load. Blocking: it reads the model's file again.

        Raises the error that the load would be refused with; a disabled model is previewed nevertheless.
        """
        entry = self._models.find(name)
        if not entry.config.disabled:
            entry = self._models.resolve(name)
        if entry.error:
            raise entry.error
        supervisor = self._fleet.get(entry.name)
        chosen = supervisor.state.candidate if supervisor else ""
        backend = entry.config.backend or chosen or self.select(entry).names[0]
        with suppress(BackendNotFoundError):
            backend = self._backends.find(backend).name
        return NextLoad(entry, backend, self._models.lines(entry))

    async def plan(self, name: str) -> tuple[Plan, Reservation]:
        """Return the evictions that loading the model would need now, and its expected memory."""
        entry = self._models.resolve(name)
        supervisor = self._fleet.get(entry.name)
        if supervisor is not None and supervisor.state.phase not in (*RESTING, Phase.WAITING):
            return Plan(fits=True), Reservation(supervisor.memory)
        backend = self._backends.find(self.select(entry).names[0])
        needs = await asyncio.to_thread(self._ledger.reserve, entry, backend, more=False)
        request = RoomRequest(
            entry.name,
            needs.memory,
            granted=lambda: None,
            refused=lambda error: None,
            counts=not backend.external,
            groups=frozenset(entry.config.concurrency_groups),
        )
        return self._scheduler.plan(request), needs

    def capacity(self) -> Capacity:
        """Return the capacity: memory, and the limits on models, loads and calls."""
        occupants = self._scheduler.occupants()
        settings = self._settings.now
        return Capacity(
            rooms=self._ledger.rooms(occupants, settings),
            active_models=sum(occupant.counts for occupant in occupants),
            max_active_models=settings.active_limit,
            loads=sum(each.loading for each in self._fleet),
            max_loads=settings.parallel_loads,
            calls=self._calls.total,
            max_calls=settings.max_concurrent_backend_requests,
            waiting=self._scheduler.queue,
        )
