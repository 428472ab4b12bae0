"""Puts verified files and their configuration in place: all or nothing."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.common.errors import ConflictError, DownloadError
from services.common.process.logging import get_logger
from services.gallery.download.transfer import disk_error

_log = get_logger(__name__)


@dataclass(slots=True)
class Placement:
    """The last step of an installation. Blocks: call it from a thread, one at a time."""

    staging: Path
    _undo: list[tuple[Path, Path | None]] = field(default_factory=list)
    _folders: list[Path] = field(default_factory=list)
    _changed: set[Path] = field(default_factory=set)

    def run(self, files: Sequence[tuple[Path, Path]], texts: Mapping[Path, str]) -> None:
        """Move each staged file to its target, then write the texts in order.

        If something fails, everything is restored.
        """
        try:
            for staged, target in files:
                self._place(staged, target)
            for target, text in texts.items():
                self._write(target, text)
        except BaseException as error:
            self._roll_back()
            if isinstance(error, OSError):
                raise disk_error(error) from error
            raise
        for folder in self._changed:
            _sync(folder)
        for _, kept in self._undo:
            if kept is not None:
                kept.unlink(missing_ok=True)

    def _place(self, staged: Path, target: Path) -> None:
        if not staged.exists():
            # An operation on another model that shares this very file has just put it there.
            if target.is_file():
                return
            raise DownloadError(f"{target.name}: was removed before it was put in place; try again")
        self._swap(staged, target)

    def _write(self, target: Path, text: str) -> None:
        data = text.encode()
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if target.read_bytes() == data:
                return
        new = self._spare()
        try:
            with open(new, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._swap(new, target)
        finally:
            new.unlink(missing_ok=True)

    def _swap(self, new: Path, target: Path) -> None:
        if target.is_dir():
            raise ConflictError(f"{target.name!r} is a folder; rename it, or install another name")
        self._make(target.parent)
        kept: Path | None = None
        if os.path.lexists(target):
            kept = self._spare()
            os.link(target, kept, follow_symlinks=False)
        self._undo.append((target, kept))
        os.replace(new, target)
        self._changed.add(target.parent)

    def _make(self, folder: Path) -> None:
        if not folder.exists():
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            self._folders.append(folder)
            self._changed.add(folder.parent)

    def _spare(self) -> Path:
        return self.staging / f"{uuid.uuid4().hex}.spare"

    def _roll_back(self) -> None:
        for target, kept in reversed(self._undo):
            try:
                if kept is None:
                    target.unlink(missing_ok=True)
                else:
                    os.replace(kept, target)
            except OSError as error:
                _log.error("could not be restored", file=str(target), error=str(error))
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _sync(folder: Path) -> None:
    """Sync a folder, so that renames survive a power cut, where the system supports it."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
