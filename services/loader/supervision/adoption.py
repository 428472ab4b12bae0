"""Adopts the ready instances of an earlier loader, so that their models need not be loaded again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from services.common.errors import CorralError, ModelNotFoundError
from services.common.process.logging import get_logger
from services.loader.backends.catalog import Backend, BackendCatalog
from services.loader.instances.instance import Connection, Instance
from services.loader.logs.log_book import Level, LogBook, Stream
from services.loader.models.catalog import ModelCatalog, ModelEntry
from services.loader.processes.interface import GroupWatch
from services.loader.processes.leftovers import Leftovers
from services.loader.processes.registry import ProcessRecord

from .dependencies import Ledger
from .fleet import Fleet

_log = get_logger(__name__)


class Starter(Protocol):
    """Connects to running backends."""

    async def adopt(self, instance: Instance, record: ProcessRecord, logs: LogBook) -> Connection:
        """Fill in the instance's process; return the connection once it answers. Raises CorralError."""
        ...

    def loaded(self, instance: Instance) -> None:
        """Record the instance as loaded: the next loader can adopt it."""
        ...

    async def stop(self, instance: Instance, *, graceful: bool) -> bool:
        """End the instance, also after a failed start; True when no process is left."""
        ...


class Adoption:
    """Hands recorded instances to the supervisors of their models, before the first request."""

    def __init__(
        self,
        *,
        models: ModelCatalog,
        backends: BackendCatalog,
        fleet: Fleet,
        starter: Starter,
        ledger: Ledger,
        leftovers: Leftovers,
        watch: GroupWatch,
    ) -> None:
        """`watch` is the guard that already watches the instances (see `Leftovers.claim`)."""
        self._models = models
        self._backends = backends
        self._fleet = fleet
        self._starter = starter
        self._ledger = ledger
        self._leftovers = leftovers
        self._watch = watch

    async def adopt(self, records: Sequence[ProcessRecord]) -> None:
        """Adopt these instances concurrently; those that cannot be used are ended.

        If a fault left several instances of one model, the one that became ready last is kept.
        """
        newest: dict[str, ProcessRecord] = {}
        for record in sorted(records, key=lambda record: record.ready or 0.0):
            newest[record.model] = record
        older = [record for record in records if newest[record.model] is not record]
        await asyncio.gather(
            *map(self._adopt, newest.values()), self._leftovers.end(self._watch, older)
        )

    async def _adopt(self, record: ProcessRecord) -> None:
        try:
            entry = self._models.find(record.model)
            if entry.name != record.model:  # found by its file, but renamed since
                raise ModelNotFoundError.of(record.model)
        except CorralError as error:
            _log.warning("a backend is ended instead of adopted", pid=record.pid, why=str(error))
            await self._leftovers.end(self._watch, [record])
            return
        backend, same = self._backend(record)
        revision = self._models.revision(entry)
        supervisor = self._fleet.ensure(record.model)
        instance = Instance(
            uid=record.uid,
            generation=supervisor.state.generation + 1,
            model=record.model,
            backend=backend,
            entry=_as_loaded(entry, record, same=same),
            started=record.started,
        )
        instance.assign(record.address, record.token)
        instance.mark_adopted(record.ready or record.started, record.load_message)
        try:
            instance.connect(await self._starter.adopt(instance, record, supervisor.logs))
        except CorralError as error:
            _log.warning("a backend is ended instead of adopted", pid=record.pid, why=str(error))
            supervisor.logs.append(Stream.LOADER, str(error), instance.generation, Level.ERROR)
            await self._starter.stop(instance, graceful=False)
            await self._leftovers.end(self._watch, [record])
            return
        self._starter.loaded(instance)
        reservation = await asyncio.to_thread(self._ledger.reserve, entry, backend, more=False)
        supervisor.adopt(instance, reservation)
        _log.info("adopted", model=record.model, backend=record.backend, pid=record.pid)
        supervisor.configuration_changed(revision)

    def _backend(self, record: ProcessRecord) -> tuple[Backend, bool]:
        """Return the running backend, and whether it is the version installed now."""
        try:
            found = self._backends.find(record.backend)
        except CorralError:
            return Backend(record.backend, run_file=Path(record.run_file)), False
        return found, found.revision == record.backend_revision


def _as_loaded(entry: ModelEntry, record: ProcessRecord, *, same: bool) -> ModelEntry:
    # No model has an empty revision, so it makes the instance outdated whatever its files are now.
    return replace(entry, revision=record.model_revision if same else "")
