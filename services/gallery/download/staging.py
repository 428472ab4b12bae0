"""Partial downloads: a folder inside the models folder, so on the same disk; it survives restarts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from services.common.process.logging import get_logger
from services.gallery.index.entry import FileSpec
from services.gallery.library.models_folder import FOLDER

_SUFFIXES: Final = (".part", ".whole", ".zip", ".origin", ".spare", ".tree", ".new")
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a partial file came from; it is resumed only from the same place."""

    url: str = ""
    validator: str = ""
    """A strong ETag, or a Last-Modified; empty if the server gave none."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The paths of one file while it is downloaded."""

    folder: Path
    key: str

    @property
    def part(self) -> Path:
        """The part of the file that was downloaded."""
        return self.folder / f"{self.key}.part"

    @property
    def archive(self) -> Path:
        """The part that was downloaded of the zip file with the file in it."""
        return self.folder / f"{self.key}.zip"

    @property
    def whole(self) -> Path:
        """The complete, verified file."""
        return self.folder / f"{self.key}.whole"

    @property
    def tree(self) -> Path:
        """The folder with all files of an unpacked archive."""
        return self.folder / f"{self.key}.tree"

    def origin(self, path: Path) -> Origin:
        """Return where a partial file came from, if that is recorded."""
        try:
            return Origin(**json.loads(_origin_file(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Origin()

    def record(self, path: Path, origin: Origin) -> None:
        """Record where a partial file comes from, before its first byte is written."""
        _origin_file(path).write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def discard(self) -> None:
        """Remove all of it."""
        for path in (self.part, self.archive, self.whole):
            forget(path)
        shutil.rmtree(self.tree, ignore_errors=True)


class Staging:
    """The folder of partial downloads; operations that need the same file share its paths."""

    def __init__(self, models: Path) -> None:
        """`models` is the models folder; nothing is created yet."""
        self.models = models
        self.folder = models / FOLDER / "partial"
        self._claims: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = {}

    def stage(self, spec: FileSpec) -> Stage:
        """Return the paths of a file: the same after a restart and for every operation."""
        identity = f"{spec.filename}\n{spec.sha256 or spec.uris[0]}"
        return Stage(self.folder, hashlib.sha256(identity.encode()).hexdigest()[:32])

    def prepare(self) -> None:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    @asynccontextmanager
    async def claim(self, stages: Iterable[Stage]) -> AsyncIterator[None]:
        """Protect these files from removal by other operations."""
        keys = [stage.key for stage in stages]
        self._claims.update(keys)
        try:
            yield
        finally:
            self._claims.subtract(keys)
            for key in keys:
                if self._claims[key] <= 0:
                    del self._claims[key]
                    self._locks.pop(key, None)

    def lock(self, stage: Stage) -> asyncio.Lock:
        """Return the lock for writing a file; claim it first."""
        return self._locks.setdefault(stage.key, asyncio.Lock())

    def discard(self, stages: Iterable[Stage]) -> None:
        """Remove these partial files, unless another operation claims them too."""
        for stage in stages:
            if self._claims[stage.key] <= 1:
                stage.discard()

    def reap(self, older_than: float) -> None:
        """Remove unclaimed partial files that have not grown for `older_than` seconds."""
        limit = time.time() - older_than
        with contextlib.suppress(FileNotFoundError):
            for item in list(os.scandir(self.folder)):
                stem, suffix = os.path.splitext(item.name)
                key = stem.partition(".")[0]
                if suffix not in _SUFFIXES or self._claims[key] > 0:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if item.stat().st_mtime >= limit:
                        continue
                    if item.is_dir():
                        shutil.rmtree(item.path, ignore_errors=True)
                    else:
                        os.unlink(item.path)
                    _log.info("removed a partial download", file=item.name)


def forget(path: Path) -> None:
    """Remove a partial file, and the record of its origin."""
    path.unlink(missing_ok=True)
    _origin_file(path).unlink(missing_ok=True)


def _origin_file(path: Path) -> Path:
    return path.with_name(path.name + ".origin")
