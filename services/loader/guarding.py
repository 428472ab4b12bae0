"""The loader's side of the guard: starts it, tells it the groups, starts it again if it dies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from services.common.logs import get_logger

_log = get_logger(__name__)
_PROGRAM = Path(__file__).with_name("guard.py")
_LEAVE_TIMEOUT = 2.0
"""Seconds for the guard to end after it was told to leave; it only has to read one line."""


class Guard:
    """Ends process groups should this process die (see guard.py). An async context manager."""

    def __init__(self, marker: str) -> None:
        """`marker` is the `NAME=value` that every backend of this loader has in its environment."""
        self._marker = marker
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        """Start the guard before the first backend."""
        self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the guard to leave; backends that are still there after an error are its to end."""
        process = self._process
        if process is None or process.stdin is None:
            return
        self._process = None
        with suppress(BrokenPipeError):
            if not self._groups:
                process.stdin.write(b"leave\n")
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, _LEAVE_TIMEOUT)

    def add(self, pgid: int) -> None:
        """Watch over a group."""
        self._groups.add(pgid)
        self._tell(f"add {pgid}\n")

    def remove(self, pgid: int) -> None:
        """Forget a group that has ended."""
        self._groups.discard(pgid)
        self._tell(f"remove {pgid}\n")

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM), self._marker],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        for pgid in sorted(self._groups):
            self._write(f"add {pgid}\n")

    def _tell(self, order: str) -> None:
        if self._process is None:
            return
        if self._process.poll() is not None or not self._write(order):
            # An order comes with every start and stop of a backend, so a dead guard is soon replaced.
            _log.warning("the guard died and is started again", pid=self._process.pid)
            self._start()

    def _write(self, order: str) -> bool:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(order.encode())  # far below PIPE_BUF: whole, and never blocks
        except BrokenPipeError:
            return False
        return True
