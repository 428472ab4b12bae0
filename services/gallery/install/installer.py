"""Installs a model: plan, check, fetch, put in place."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from services.common.process.logging import get_logger
from services.gallery.download.downloader import Candidates
from services.gallery.download.staging import Staging
from services.gallery.download.transfer import with_disk_errors
from services.gallery.library.installed import InstalledModel, InstalledModels
from services.gallery.library.models_folder import ModelsFolder
from services.gallery.operations.progress import Phase, Progress
from services.gallery.resolve.planner import Admitted, Plan, Planner
from services.gallery.threads import run_to_completion

from .conflicts import Conflicts
from .fetch import Fetcher
from .item import Item
from .placement import Placement

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Installed:
    """The result of an installation."""

    model: InstalledModel
    bytes_fetched: int


class Installer:
    """Installs models into one folder."""

    def __init__(
        self, planner: Planner, fetcher: Fetcher, folder: ModelsFolder, staging: Staging
    ) -> None:
        """`fetcher` MUST use the same staging folder."""
        self._planner = planner
        self._fetcher = fetcher
        self._folder = folder
        self._staging = staging
        self._installed = InstalledModels(folder)
        self._placing = asyncio.Lock()

    async def install(self, admitted: Admitted, progress: Progress) -> Installed:
        """Install a model, or raise and leave the models folder as it was.

        After a crash or a failure, calling it again continues where it stopped. Once files are being
        put in place, a cancellation has no effect.
        """
        request = admitted.request
        progress.enter(Phase.RESOLVING, f"finding out what {request.entry} needs")
        plan = await self._planner.plan(admitted)
        if plan.changed:
            _log.warning("the entry changed since it was requested", entry=request.entry)
            progress.enter(Phase.RESOLVING, f"{request.entry} changed since it was requested")
        items = await run_to_completion(with_disk_errors(self._items), plan, progress)
        async with self._staging.claim(item.stage for item in items):
            try:
                conflicts = Conflicts(self._folder, plan.config_file)
                if not request.force:
                    await run_to_completion(conflicts.check_config)
                await self._fetcher.fetch(items, conflicts, request.force, progress)
                model = await self._finish(plan, items, progress)
            except asyncio.CancelledError:
                if progress.cancel_requested:
                    self._staging.discard(item.stage for item in items)
                raise
        _log.info(
            "installed", model=plan.name, entry=plan.entry.full_name, fetched=progress.fetched
        )
        return Installed(model, progress.fetched)

    def _items(self, plan: Plan, progress: Progress) -> list[Item]:
        self._staging.prepare()
        return [
            Item(
                spec,
                self._folder.target(spec.filename),
                self._staging.stage(spec),
                progress.add(spec.filename),
                Candidates(spec, list(spec.uris)),
            )
            for spec in plan.files
        ]

    async def _finish(
        self, plan: Plan, items: Sequence[Item], progress: Progress
    ) -> InstalledModel:
        """Put all files in place; once begun, this runs to completion even if cancelled."""
        async with self._placing:
            progress.enter(Phase.COMMITTING)
            placing = asyncio.ensure_future(run_to_completion(self._place, plan, items))
            try:
                return await asyncio.shield(placing)
            except asyncio.CancelledError:
                await asyncio.wait({placing})
                model = placing.result()
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
                return model

    def _place(self, plan: Plan, items: Sequence[Item]) -> InstalledModel:
        # Checked again: other models may have been installed during the download.
        conflicts = Conflicts(self._folder, plan.config_file)
        moves = []
        for item in items:
            if item.in_place:
                continue
            # If it is not staged any more, an operation that shares the file put it in place.
            if item.stage.whole.exists():
                conflicts.check_file(item, threading.Event())
            for staged, name in item.members:
                target = self._folder.target(name)
                conflicts.check_member(staged, target, name)
                moves.append((staged, target))
            # The archive comes after its files: if it is in place, so are they.
            moves.append((item.stage.whole, item.target))
        texts = {self._folder.path / name: text for name, text in plan.texts.items()}
        Placement(self._staging.folder).run(moves, texts)
        for item in items:
            shutil.rmtree(item.stage.tree, ignore_errors=True)
        return self._installed.describe(plan.configured)
