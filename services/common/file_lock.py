"""An exclusive lock on a folder, as a lock file in it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class FileLock:
    """An exclusive lock on a file, for processes. The system releases it when the process ends."""

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        """Open the file, created if it is missing, without locking it. Raises OSError."""
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)

    def acquire(self) -> bool:
        """Lock the file; return False if another process has it. Raises OSError if locks do not work."""
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def write_pid(self) -> None:
        """Write this process's id into the file, for the error that another process then reports."""
        assert self._file is not None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def pid(self) -> str:
        """Return the process id in the file; empty if there is none."""
        assert self._file is not None
        try:
            return os.pread(self._file, 20, 0).decode(errors="replace").strip()
        except OSError:
            return ""

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock."""
        self.close()
