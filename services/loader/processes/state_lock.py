"""One loader per state folder: two would end, or take over, each other's backends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.common.errors import DeadlineError
from services.common.file_lock import FileLock
from services.common.process.listen_address import StartError
from services.common.tasks import wait_until

_PATIENCE = 2.0
"""Seconds for a loader that was just killed to be gone: the system frees its memory first."""


@asynccontextmanager
async def state_lock(folder: Path) -> AsyncIterator[None]:
    """Hold the folder for this process, until its end at the latest, however it ends.

    Raises StartError that names the process which holds it, and the remedy.
    """
    with _open(folder) as lock:
        await _take(lock, folder)
        lock.write_pid()
        yield


def _open(folder: Path) -> FileLock:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(folder / "lock")
    except OSError as error:
        raise StartError(
            f"the state folder cannot be used: {error.filename or folder}: {error.strerror}; choose"
            " another with --state-path"
        ) from error


async def _take(lock: FileLock, folder: Path) -> None:
    def taken() -> bool:
        try:
            return lock.acquire()
        except OSError as error:
            raise StartError(
                f"cannot lock {folder / 'lock'}: {error.strerror}; choose a state folder on a local"
                " disk with --state-path"
            ) from error

    try:
        await wait_until(taken, timeout=_PATIENCE, what="the lock")
    except DeadlineError:
        holder = lock.pid()
        raise StartError(
            f"another loader{f' (process {holder})' if holder else ''} uses the state folder"
            f" {folder}; stop it, or give this one its own with --state-path"
        ) from None
