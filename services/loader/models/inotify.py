"""Notification of changes in a folder: inotify, where the system has it.

Only a hint: network folders send nothing, and a folder that does not exist yet cannot be watched,
so the caller must also poll now and then. Standard library only: it is three calls of libc, it
costs no thread and, while nothing happens, no processor time.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from services.common.process.logging import get_logger

_log = get_logger(__name__)

# From <sys/inotify.h>. Not IN_MODIFY: a download would send one for each block it writes.
_ATTRIBUTES, _CLOSED_AFTER_WRITE, _CREATED, _DELETED = 0x4, 0x8, 0x100, 0x200
_MOVED_FROM, _MOVED_TO, _SELF_DELETED, _SELF_MOVED = 0x40, 0x80, 0x400, 0x800
_ONLY_FOLDERS: Final = 0x01000000
_MASK: Final = (
    *(_ATTRIBUTES, _CLOSED_AFTER_WRITE, _CREATED, _DELETED),
    *(_MOVED_FROM, _MOVED_TO, _SELF_DELETED, _SELF_MOVED),
)
_BUFFER: Final = 64 * 1024


class FolderEvents:
    """Sets an event when something in the folder changes. Belongs to one event loop."""

    def __init__(self, folder: Path) -> None:
        """Watch nothing yet; see `attach`."""
        self.changed = asyncio.Event()
        self._folder = folder
        self._descriptor = -1
        self._watch: tuple[int, int] | None = None
        """Device and inode of the folder that is watched."""

    @contextmanager
    def watching(self) -> Iterator[FolderEvents]:
        """Listen until the end of the block."""
        self._descriptor = _open()
        if self._descriptor < 0:
            _log.debug("no inotify: folders are looked at now and then only")
            yield self
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(self._descriptor, self._arrived)
        try:
            yield self
        finally:
            loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor, self._watch = -1, None

    def attach(self) -> None:
        """Watch the folder that has this name now; cheap if it is the one already watched."""
        if self._descriptor < 0:
            return
        try:
            status = self._folder.stat()
        except OSError:
            self._watch = None
            return
        if self._watch != (status.st_dev, status.st_ino):
            mask = _ONLY_FOLDERS | sum(_MASK)
            code = _libc.inotify_add_watch(self._descriptor, os.fsencode(self._folder), mask)
            self._watch = (status.st_dev, status.st_ino) if code >= 0 else None

    def _arrived(self) -> None:
        try:
            while os.read(self._descriptor, _BUFFER):
                self.changed.set()
        except BlockingIOError:
            return


def _open() -> int:
    if not sys.platform.startswith("linux"):
        return -1
    return int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


_libc = ctypes.CDLL(None, use_errno=True)
