"""Taking over the instances that an earlier loader left ready, so that no model is loaded anew."""

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
    """Connects to backends that run already."""

    async def adopt(self, instance: Instance, record: ProcessRecord, logs: LogBook) -> Connection:
        """Fill in the instance's process; return the connection once it answers. Raises CorralError."""
        ...

    def loaded(self, instance: Instance) -> None:
        """Take note that the instance holds its model: the next loader could use it."""
        ...

    async def stop(self, instance: Instance, *, graceful: bool) -> bool:
        """End it, also after a failure; True when nothing is left."""
        ...


class Adoption:
    """Hands recorded instances to the supervisors of their models, before anybody asks for these."""

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
        """`watch` is the guard that watches over the instances already (see `Leftovers.claim`)."""
        self._models = models
        self._backends = backends
        self._fleet = fleet
        self._starter = starter
        self._ledger = ledger
        self._leftovers = leftovers
        self._watch = watch

    async def adopt(self, records: Sequence[ProcessRecord]) -> None:
        """Take these over, all at once; those that cannot be used are ended.

        Of several of one model, which only a fault can leave, the one that was ready last stays.
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
            if entry.name != record.model:  # found by its file, and called otherwise by now
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
        """Return the backend that runs, and whether the one installed now is the same."""
        try:
            found = self._backends.find(record.backend)
        except CorralError:
            return Backend(record.backend, run_file=Path(record.run_file)), False
        return found, found.revision == record.backend_revision


def _as_loaded(entry: ModelEntry, record: ProcessRecord, *, same: bool) -> ModelEntry:
    # No model ever has an empty revision: with it, the instance is outdated whatever its files are now.
    return replace(entry, revision=record.model_revision if same else "")
