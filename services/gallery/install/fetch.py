"""Fetches the files of an installation into their staging places."""

from __future__ import annotations

import asyncio
import functools
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.common.errors import DiskFullError, PathEscapeError
from services.gallery.download.downloader import Downloader
from services.gallery.download.staging import Staging
from services.gallery.download.unpack import is_archive, unpack, unpacked
from services.gallery.errors import RefusedError
from services.gallery.operations.progress import Phase, Progress
from services.gallery.sources.registry import LocalFile, Remote
from services.gallery.threads import run_cancellable, run_to_completion

from .conflicts import Conflicts
from .item import Item

# Small requests to servers in parallel while the sizes of the files are determined.
_PARALLEL_REQUESTS: Final = 4


class Fetcher:
    """Fetches what is missing, after checking that it fits and replaces nothing in use."""

    def __init__(
        self, downloader: Downloader, staging: Staging, *, disk_reserve: int, extracted_size: int
    ) -> None:
        """`disk_reserve` bytes stay free; an archive may unpack to `extracted_size` bytes."""
        self._downloader = downloader
        self._staging = staging
        self._disk_reserve = disk_reserve
        self._extracted_size = extracted_size

    async def fetch(
        self, items: Sequence[Item], conflicts: Conflicts, force: bool, progress: Progress
    ) -> None:
        """Fetch each file that is not in place; `force` fetches those without a digest again.

        The items MUST be claimed in the staging folder.
        """
        progress.enter(Phase.VERIFYING, "checking which files are already in place")
        for item in items:
            await self._check(item, conflicts, force)
        missing = [item for item in items if not item.in_place]
        if missing:
            progress.enter(Phase.RESOLVING, "asking the sources for sizes")
            await self._locate_all(missing, conflicts, force)
            missing = [item for item in missing if not item.in_place]
        await run_to_completion(self._check_disk, missing)
        for item in missing:
            async with self._staging.lock(item.stage):
                await self._fetch_one(item, force)

    async def _check(self, item: Item, conflicts: Conflicts, force: bool) -> None:
        if force and not item.spec.sha256:
            # Left by an earlier try, and without a digest it cannot be verified.
            self._staging.discard([item.stage])
        if not force and await run_cancellable(item.matches_target):
            item.mark_in_place()
        elif item.spec.sha256:
            await run_cancellable(functools.partial(conflicts.check_file, item))

    async def _locate_all(self, items: Sequence[Item], conflicts: Conflicts, force: bool) -> None:
        parallel = asyncio.Semaphore(_PARALLEL_REQUESTS)

        async def locate(item: Item) -> None:
            async with parallel:
                await self._locate(item, force)
                if not item.in_place:
                    await run_cancellable(functools.partial(conflicts.check_file, item))

        outcomes = await asyncio.gather(*map(locate, items), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _locate(self, item: Item, force: bool) -> None:
        """Find out the file's size, and whether a file without a digest is already in place."""
        if item.stage.whole.exists():
            item.progress.resize(item.stage.whole.stat().st_size)
            return
        located = await self._downloader.locate(item.candidates)
        item.progress.resize(located.size)
        if force or item.spec.sha256 or not item.target.is_file():
            return
        # Only the size can be compared, and that of a file inside an archive is not known yet.
        size = 0 if isinstance(located, Remote) and located.member else located.size
        if size in (0, item.target.stat().st_size):
            item.mark_in_place()

    def _check_disk(self, items: Sequence[Item]) -> None:
        needed = 0
        for item in items:
            located = item.candidates.located
            if located is None:
                continue
            needed += max(located.size - _size(item.stage.part) - _size(item.stage.archive), 0)
            if not isinstance(located, LocalFile) and located.member:
                needed += max(item.spec.size, located.size)
        folder = self._staging.models
        free = max(shutil.disk_usage(folder).free - self._disk_reserve, 0)
        if needed > free:
            raise DiskFullError(
                f"{needed} bytes are needed in {folder}, and {free} are available"
                f" ({self._disk_reserve} stay free)",
                metadata={"needed": str(needed), "free": str(free)},
            )

    async def _fetch_one(self, item: Item, force: bool) -> None:
        """Fetch a file, unless another operation has fetched the same one meanwhile."""
        if item.stage.whole.exists():
            item.progress.finish()
        elif not force and await run_cancellable(item.matches_target):
            item.mark_in_place()
            return
        else:
            await self._downloader.fetch(item.candidates, item.stage, item.progress)
        if is_archive(item.spec.filename):
            item.progress.enter(Phase.EXTRACTING, f"unpacking {item.spec.filename}")
            await run_cancellable(functools.partial(self._unpack, item))

    def _unpack(self, item: Item, stop: threading.Event) -> None:
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
            # Unpacking it again would fail in the same way; a new download may be another edition.
            item.stage.discard()
            raise
        parent = Path(item.spec.filename).parent
        item.members = [
            (item.stage.tree / name, (parent / name).as_posix())
            for name in unpacked(item.stage.tree)
        ]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
