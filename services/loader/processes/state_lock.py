"""One loader a state folder: two would end, or take over, each other's backends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from services.common.errors import DeadlineError
from services.common.process.listen_address import StartError
from services.common.tasks import wait_until

_PATIENCE = 2.0
"""Seconds for a loader that was just killed to be gone: the system frees its memory first."""


@asynccontextmanager
async def state_lock(folder: Path) -> AsyncIterator[None]:
    """Hold the folder for this process, until its end at the latest, however it ends.

    Raises StartError that names the process which holds it, and the remedy.
    """
    file = _open(folder)
    try:
        await _take(file, folder)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


def _open(folder: Path) -> int:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(
            f"the state folder cannot be used: {error.filename or folder}: {error.strerror}; choose"
            " another with --state-path"
        ) from error


async def _take(file: int, folder: Path) -> None:
    def taken() -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StartError(
                f"cannot lock {folder / 'lock'}: {error.strerror}; choose a state folder on a local"
                " disk with --state-path"
            ) from error
        return True

    try:
        await wait_until(taken, timeout=_PATIENCE, what="the lock")
    except DeadlineError:
        holder = ""
        with suppress(OSError):
            holder = os.pread(file, 20, 0).decode(errors="replace").strip()
        raise StartError(
            f"another loader{f' (process {holder})' if holder else ''} uses the state folder"
            f" {folder}; stop it, or give this one its own with --state-path"
        ) from None
