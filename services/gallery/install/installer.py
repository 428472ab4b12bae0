"""Installing a model: plan, check, fetch, put in place."""

from __future__ import annotations

import asyncio
import filecmp
import functools
import hashlib
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.common.errors import (
    ConflictError,
    DiskFullError,
    DownloadError,
    ModelNotFoundError,
    PathEscapeError,
)
from services.common.process.logging import get_logger
from services.gallery.download.downloader import Candidates, Downloader
from services.gallery.download.staging import Stage, Staging
from services.gallery.download.transfer import with_disk_errors
from services.gallery.download.unpack import is_archive, unpack, unpacked
from services.gallery.errors import RefusedError
from services.gallery.index.entry import FileSpec
from services.gallery.library.installed import InstalledModel, InstalledModels
from services.gallery.library.models_folder import Contents, ModelsFolder
from services.gallery.operations.progress import FileProgress, Phase, Progress
from services.gallery.resolve.planner import InstallRequest, Plan, Planner
from services.gallery.sources.registry import LocalFile, Remote
from services.gallery.threads import run_cancellable, run_to_completion

from .placement import Placement

# Questions to servers at once while the sizes are found out; each is one small request.
_PARALLEL_QUESTIONS: Final = 4
_BLOCK: Final = 1024 * 1024
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Installed:
    """What an installation came to."""

    model: InstalledModel
    bytes_fetched: int


@dataclass(slots=True)
class _Item:
    """One file of an installation."""

    spec: FileSpec
    target: Path
    stage: Stage
    progress: FileProgress
    candidates: Candidates
    there: bool = False
    """In the models folder already, as it should be."""
    members: list[tuple[Path, str]] = field(default_factory=list)
    """What an archive holds: where it is unpacked, and where it goes below the models folder."""


class Installer:
    """Installs models into one folder."""

    def __init__(
        self,
        planner: Planner,
        downloader: Downloader,
        folder: ModelsFolder,
        staging: Staging,
        *,
        disk_reserve: int,
        extracted_size: int,
    ) -> None:
        """Take what it works with."""
        self._planner = planner
        self._downloader = downloader
        self._folder = folder
        self._staging = staging
        self._installed = InstalledModels(folder)
        self._disk_reserve = disk_reserve
        self._extracted_size = extracted_size
        self._placing = asyncio.Lock()

    async def install(self, request: InstallRequest, progress: Progress) -> Installed:
        """Do it, or raise and leave what was there before.

        May be called again after a crash or a failure, and goes on where it stopped. A cancellation
        that comes when the files are already being put in place comes too late.
        """
        progress.enter(Phase.RESOLVING, f"finding out what {request.entry} needs")
        plan = await self._planner.plan(request)
        items = await run_to_completion(with_disk_errors(self._items), plan, progress)
        async with self._staging.claim(item.stage for item in items):
            try:
                await self._fetch(plan, items, request.force, progress)
                await self._finish(plan, items, progress)
            except asyncio.CancelledError:
                if progress.cancel_requested:
                    self._staging.discard(item.stage for item in items)
                raise
        model = await self._installed.find(plan.config_file)
        if model is None:
            raise ModelNotFoundError.of(plan.name)
        _log.info(
            "installed", model=plan.name, entry=plan.entry.full_name, fetched=progress.fetched
        )
        return Installed(model, progress.fetched)

    def _items(self, plan: Plan, progress: Progress) -> list[_Item]:
        self._staging.prepare()
        return [
            _Item(
                spec,
                self._folder.target(spec.filename),
                self._staging.stage(spec),
                progress.add(spec.filename),
                Candidates(spec, list(spec.uris)),
            )
            for spec in plan.files
        ]

    async def _fetch(
        self, plan: Plan, items: Sequence[_Item], force: bool, progress: Progress
    ) -> None:
        contents = await run_to_completion(self._folder.scan)
        self._check_config(plan, contents, force)
        progress.enter(Phase.VERIFYING, "looking at what is there")
        for item in items:
            if force and not item.spec.sha256:
                # Left over from an earlier try, and nothing says whether it is still the same.
                self._staging.discard([item.stage])
            if not force and await run_cancellable(functools.partial(_same, item)):
                self._is_there(item)
            elif item.spec.sha256:
                await run_cancellable(functools.partial(_check_file, plan, item, contents))
        asking = asyncio.Semaphore(_PARALLEL_QUESTIONS)

        async def size_up(item: _Item) -> None:
            async with asking:
                await self._size_up(item, force)
                if not item.there:
                    await run_cancellable(functools.partial(_check_file, plan, item, contents))

        missing = [item for item in items if not item.there]
        if missing:
            progress.enter(Phase.RESOLVING, "asking the sources for sizes")
            answers = await asyncio.gather(*map(size_up, missing), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
        missing = [item for item in missing if not item.there]
        await run_to_completion(self._check_room, missing)
        for item in missing:
            async with self._staging.lock(item.stage):
                await self._fetch_one(item, force)

    async def _fetch_one(self, item: _Item, force: bool) -> None:
        """Fetch a file, unless an operation that shares it has done so in the meantime."""
        if item.stage.whole.exists():
            item.progress.finish()
        elif not force and await run_cancellable(functools.partial(_same, item)):
            self._is_there(item)
            return
        else:
            await self._downloader.fetch(item.candidates, item.stage, item.progress)
        if is_archive(item.spec.filename):
            item.progress.enter(Phase.EXTRACTING, f"unpacking {item.spec.filename}")
            await run_cancellable(functools.partial(self._unpack, item))

    def _unpack(self, item: _Item, stop: threading.Event) -> None:
        try:
            unpack(
                item.stage.whole,
                item.spec.filename,
                item.stage.tree,
                limit=self._extracted_size,
                reserve=self._disk_reserve,
                stop=stop,
            )
        except (RefusedError, PathEscapeError):
            # It will be no better the next time; what comes then may be another edition.
            item.stage.discard()
            raise
        parent = Path(item.spec.filename).parent
        item.members = [
            (item.stage.tree / name, (parent / name).as_posix())
            for name in unpacked(item.stage.tree)
        ]

    async def _size_up(self, item: _Item, force: bool) -> None:
        """Find the file's size, and whether a file without a digest is there already."""
        if item.stage.whole.exists():
            item.progress.resize(item.stage.whole.stat().st_size)
            return
        located = await self._downloader.locate(item.candidates)
        item.progress.resize(located.size)
        if force or item.spec.sha256 or not item.target.is_file():
            return
        # Nothing but the size to go by; that of a file in an archive is not known beforehand.
        size = 0 if isinstance(located, Remote) and located.member else located.size
        if size in (0, item.target.stat().st_size):
            self._is_there(item)

    def _is_there(self, item: _Item) -> None:
        item.there = True
        item.progress.resize(max(item.target.stat().st_size, 1))
        item.progress.finish()

    def _check_config(self, plan: Plan, contents: Contents, force: bool) -> None:
        """Refuse to overwrite a configuration that somebody wrote by hand."""
        for one in contents.configured:
            if one.file == plan.config_file and not one.record and not force:
                raise ConflictError(
                    f"{plan.config_file} was not written by a gallery and would be overwritten;"
                    " choose another model_id, or force it"
                )

    def _check_room(self, items: Sequence[_Item]) -> None:
        needed = 0
        for item in items:
            located = item.candidates.located
            if located is None:
                continue
            needed += max(located.size - _size(item.stage.part) - _size(item.stage.archive), 0)
            if not isinstance(located, LocalFile) and located.member:
                needed += max(item.spec.size, located.size)
        free = max(shutil.disk_usage(self._folder.path).free - self._disk_reserve, 0)
        if needed > free:
            raise DiskFullError(
                f"{needed} bytes are needed in {self._folder.path}, and {free} may be used"
                f" ({self._disk_reserve} stay free)",
                metadata={"needed": str(needed), "free": str(free)},
            )

    async def _finish(self, plan: Plan, items: Sequence[_Item], progress: Progress) -> None:
        """Put it in place. Once begun it is done to its end, whoever cancels."""
        async with self._placing:
            progress.enter(Phase.COMMITTING)
            placing = asyncio.ensure_future(run_to_completion(self._place, plan, items))
            try:
                await asyncio.shield(placing)
            except asyncio.CancelledError:
                await asyncio.wait({placing})
                placing.result()
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()

    def _place(self, plan: Plan, items: Sequence[_Item]) -> None:
        contents = self._folder.scan()
        moves = []
        for item in items:
            if item.there:
                continue
            # What is not staged any more was put in place by an operation that shares it.
            if item.stage.whole.exists():
                _check_file(plan, item, contents, threading.Event())
            for staged, name in item.members:
                target = self._folder.target(name)
                _check_member(staged, target, contents.users(name, but=plan.config_file))
                moves.append((staged, target))
            # After its files: an archive that is there says that they are there too.
            moves.append((item.stage.whole, item.target))
        texts = {self._folder.path / name: text for name, text in plan.texts.items()}
        Placement(self._staging.folder).run(moves, texts)
        for item in items:
            shutil.rmtree(item.stage.tree, ignore_errors=True)


def _check_file(plan: Plan, item: _Item, contents: Contents, stop: threading.Event) -> None:
    """Refuse to replace a file that another model uses: it would silently get other weights."""
    if item.target.is_dir():
        raise ConflictError(f"{item.spec.filename!r} is a folder in the models folder")
    users = contents.users(item.spec.filename, but=plan.config_file)
    if users and item.target.exists() and not _same(item, stop):
        raise ConflictError(
            f"{item.spec.filename!r} is there with other contents and used by {', '.join(users)};"
            " delete that first, or install it from another gallery entry",
            metadata={"file": item.spec.filename, "used_by": ",".join(users)},
        )


def _check_member(staged: Path, target: Path, users: Sequence[str]) -> None:
    """The same for a file out of an archive."""
    if users and target.is_file() and staged.exists() and not filecmp.cmp(staged, target, False):
        raise ConflictError(
            f"{target.name!r} is there with other contents and used by {', '.join(users)}",
            metadata={"file": target.name, "used_by": ",".join(users)},
        )


def _same(item: _Item, stop: threading.Event) -> bool:
    """Say whether the file is there, whole and right; without a digest that cannot be known."""
    if not item.spec.sha256 or not item.target.is_file():
        return False
    return _digest(item.target, stop) == item.spec.sha256


def _digest(path: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", 0) as file:
            while not stop.is_set() and (block := file.read(_BLOCK)):
                digest.update(block)
    except OSError as error:
        raise DownloadError(f"{path.name}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
