"""The loader's side of the guard: starts it, sends it the groups, and restarts it as soon as it
dies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from services.common.errors import DeadlineError
from services.common.process.logging import get_logger
from services.common.tasks import wait_until

_log = get_logger(__name__)
_PROGRAM = Path(__file__).with_name("guard.py")
_LEAVE_TIMEOUT = 2.0
"""Seconds for the guard to end after the order to leave; it only has to read one line."""
_SHORT_LIFE = 1.0
"""Seconds: if several guards in a row live no longer than this, none can run here, and the next
start waits this long."""
_SHORT_LIVES = 3


class Guard:
    """Ends process groups should this process die (see guard.py). An async context manager."""

    def __init__(self, marker: str, *, patience: float = 0.0, earlier: Iterable[str] = ()) -> None:
        """`marker` is the `NAME=value` that every backend of this loader has in its environment.

        `patience` is how many seconds those that are kept wait for the next loader; `earlier` are the
        markers of loaders whose remains this one has to see to.
        """
        self._arguments = [f"{patience:g}", marker, *earlier]
        self._groups: dict[int, tuple[str, bool]] = {}
        """The instance of each group, and whether it is kept."""
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._short_lives = 0
        self._again: asyncio.TimerHandle | None = None

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
        """Order the guard to leave; it ends or keeps the backends that are still there."""
        if self._again is not None:
            self._again.cancel()
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        self._stop_watching(process)
        with suppress(BrokenPipeError):
            if not self._groups:
                process.stdin.write(b"leave\n")
        with suppress(BrokenPipeError):
            process.stdin.close()
        if any(kept for _, kept in self._groups.values()):
            return  # it stays with them
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, _LEAVE_TIMEOUT)

    def add(self, pgid: int, uid: str) -> None:
        """Watch over the group of an instance: it ends with this process."""
        self._groups[pgid] = uid, False
        self._tell(_order(pgid, uid, keep=False))

    def keep(self, pgid: int, uid: str) -> None:
        """Watch over a group that may outlive this process until the next loader takes it over."""
        self._groups[pgid] = uid, True
        self._tell(_order(pgid, uid, keep=True))

    def remove(self, pgid: int, uid: str) -> None:
        """Forget the group of an ended instance, but not a newer group with the same id."""
        if self._groups.get(pgid, ("", False))[0] == uid:
            del self._groups[pgid]
            self._tell(f"remove {pgid}\n")

    def _start(self) -> None:
        self._again = None
        self._started = time.monotonic()
        process = self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM), *self._arguments],
            stdin=subprocess.PIPE,
            # Nothing is ever written to it: that it closes is how the guard's end is seen.
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert process.stdout is not None
        asyncio.get_running_loop().add_reader(process.stdout.fileno(), self._died, process)
        for pgid, (uid, keep) in sorted(self._groups.items()):
            self._write(_order(pgid, uid, keep=keep))

    def _died(self, process: subprocess.Popen[bytes]) -> None:
        """Replace the guard at once: without one, the loader's own death would leave backends behind."""
        self._stop_watching(process)
        if self._process is not process:
            return
        self._process = None
        process.kill()  # it has closed its pipes, so it is no use, and ends within a moment
        code = process.wait()
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
        _log.warning("the guard died and is started again", pid=process.pid, code=code)
        short = time.monotonic() - self._started < _SHORT_LIFE
        self._short_lives = self._short_lives + 1 if short else 0
        if self._short_lives < _SHORT_LIVES:
            self._start()
        else:
            self._again = asyncio.get_running_loop().call_later(_SHORT_LIFE, self._start)

    def _tell(self, order: str) -> None:
        # A guard that is just being restarted gets all groups once it is up.
        if self._process is not None:
            self._write(order)

    def _write(self, order: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        # Far below PIPE_BUF: whole, and never blocks. That the other end is closed, `_died` sees too.
        with suppress(BrokenPipeError):
            self._process.stdin.write(order.encode())

    @staticmethod
    def _stop_watching(process: subprocess.Popen[bytes]) -> None:
        if process.stdout is not None and not process.stdout.closed:
            asyncio.get_running_loop().remove_reader(process.stdout.fileno())
            process.stdout.close()


async def dismiss_guards(markers: Collection[str], timeout: float) -> None:
    """End the guards that earlier loaders left; to be called when another watches.

    A guard is known by its command line, which holds its loader's marker: a guard keeps it however
    often it is restarted, and no other process has it.
    """
    guards = await asyncio.to_thread(_kill_guards, markers)
    try:
        await wait_until(
            # A zombie has ended; the system's first process may take its time to notice.
            lambda: not any(map(_lives, guards)),
            timeout=timeout,
            what="the end of earlier guards",
        )
    except DeadlineError:
        _log.error("an earlier loader's guard does not end", pids=[guard.pid for guard in guards])


def _kill_guards(markers: Collection[str]) -> list[psutil.Process]:
    guards = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            program = next(
                (i for i, word in enumerate(words) if Path(word).name == _PROGRAM.name), -1
            )
            if program > 0 and words[program + 2 : program + 3] and words[program + 2] in markers:
                process.kill()  # refuses if another process has the pid now
                guards.append(process)
    return guards


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _order(pgid: int, uid: str, *, keep: bool) -> str:
    return f"{'keep' if keep else 'add'} {pgid} {uid}\n"
