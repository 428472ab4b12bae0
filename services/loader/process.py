"""Starting and ending backend processes. `Launcher` is the seam: nothing above assumes a local pid.

A local backend runs in a session of its own, so that its whole process group can be ended together,
and carries a marker in its environment, by which helpers that left the group are found too.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Protocol

import psutil

from services.common.errors import BackendStartError, DeadlineError
from services.common.tasks import wait_until

from .processes import group_members, listens_on, marked_processes, oom_kills

MARKER = "CORRAL_INSTANCE"
"""Environment variable that names the instance a process belongs to."""

_READ_SIZE = 64 * 1024

_FLOOD = _READ_SIZE // 4
"""Bytes at once that no backend writes unless it floods its log."""

_FLOOD_REST = 4
"""How many times as long as the handling of such a chunk the pipe then rests at least."""

_FLOOD_RATE = 10 * 1024 * 1024
"""Bytes a second that are read of a flood at most: reading costs more than handling what was read."""

_LAST_WORDS = 0.5
"""Seconds for a pipe to close after its process group is gone; only a passed-on descriptor needs more."""

LineSink = Callable[[str, bytes], None]
"""Takes the pipe's name (`stdout`, `stderr`) and what was read from it; never blocks."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to start."""

    uid: str
    """The instance's id, unique over restarts."""
    run_file: Path
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path | None = None
    """Where it runs; None for the run file's folder."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended."""

    code: int | None = None
    """Exit code; None if a signal ended it."""
    signal: int | None = None
    out_of_memory: bool = False
    """The kernel killed something for lack of memory while this process ran, and it died by SIGKILL."""

    @property
    def signal_name(self) -> str:
        """The signal's name; empty if there was none."""
        if self.signal is None:
            return ""
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"

    def __str__(self) -> str:
        """Say it for people."""
        if self.signal is None:
            return f"exited with code {self.code}"
        text = f"was killed by {self.signal_name}"
        return f"{text} (the system ran out of memory)" if self.out_of_memory else text


class BackendProcess(Protocol):
    """A started backend."""

    @property
    def pid(self) -> int:
        """The first process; 0 if it runs elsewhere."""
        ...

    async def wait(self) -> Exit:
        """Return when the first process has ended; may be awaited many times."""
        ...

    async def owns_port(self, port: int) -> bool:
        """Whether a process of this backend listens on the TCP port."""
        ...

    async def drain_output(self, timeout: float) -> None:
        """Wait until what was written before the end has been read, at most `timeout` seconds."""
        ...

    async def stop(self, *, graceful: bool) -> bool:
        """End everything that belongs to the backend; True when nothing of it is left. Idempotent."""
        ...


class Launcher(Protocol):
    """Starts backends somewhere."""

    async def launch(self, spec: ProcessSpec, sink: LineSink) -> BackendProcess:
        """Start it; raises BackendStartError that says what to mend."""
        ...


class GroupWatch(Protocol):
    """Ends process groups should the loader itself die (see guard.py)."""

    def add(self, pgid: int) -> None:
        """Watch over a group."""
        ...

    def remove(self, pgid: int) -> None:
        """Forget a group that has ended."""
        ...


@dataclass(slots=True)
class LocalLauncher:
    """Starts backends as child processes."""

    watch: GroupWatch
    stop_timeout: float
    """Seconds from SIGTERM to SIGKILL."""
    kill_timeout: float
    """Seconds from SIGKILL until the group must be gone."""

    async def launch(self, spec: ProcessSpec, sink: LineSink) -> LocalProcess:
        """Start it in a session of its own, stdin from /dev/null, in the run file's folder."""
        kills_before = oom_kills()
        try:
            make_executable(spec.run_file)
            # Not asyncio's: its wait() differs between versions. Spawning takes about a millisecond.
            child = subprocess.Popen(  # noqa: ASYNC220
                [str(spec.run_file), *spec.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=spec.folder or spec.run_file.parent,
                env={**spec.environment, MARKER: spec.uid},
                # Never preexec_fn: forking under gRPC's threads is only safe straight into exec.
                start_new_session=True,
            )
        except OSError as error:
            raise BackendStartError(
                f"cannot start {spec.run_file}: {error.strerror or error}{_hint(error)}"
            ) from error
        self.watch.add(child.pid)
        # No await between here and the return: a caller that is cancelled must not lose the child.
        return LocalProcess(child, spec.uid, kills_before, self, sink)


class LocalProcess:
    """A child process and its group."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        uid: str,
        kills_before: int,
        launcher: LocalLauncher,
        sink: LineSink,
    ) -> None:
        """Take a child that was just started; begin to read its pipes, and to wait for its end."""
        self._child = child
        self._uid = uid
        self._kills_before = kills_before
        self._launcher = launcher
        loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = loop.create_future()
        # Both pipes are read until they close: a full pipe would block the backend for ever.
        self._readers = [
            loop.create_task(self._read("stdout", child.stdout, sink)),
            loop.create_task(self._read("stderr", child.stderr, sink)),
        ]
        threading.Thread(
            target=self._wait_in_thread, args=(loop,), name=f"wait-{child.pid}", daemon=True
        ).start()

    @property
    def pid(self) -> int:
        """The child's pid, which is its group's id too."""
        return self._child.pid

    async def _read(self, name: str, pipe: IO[bytes] | None, sink: LineSink) -> None:
        reader = asyncio.StreamReader(limit=_READ_SIZE)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            partial(asyncio.StreamReaderProtocol, reader), pipe
        )
        try:
            while chunk := await reader.read(_READ_SIZE):
                began = time.monotonic()
                sink(name, chunk)
                if len(chunk) >= _FLOOD and not self._exit.done():
                    # One model's flood must not delay the calls of others; its backend waits instead.
                    rest = (time.monotonic() - began) * _FLOOD_REST
                    await asyncio.sleep(max(rest, len(chunk) / _FLOOD_RATE))
        except ConnectionError:
            pass
        finally:
            sink(name, b"")
            transport.close()

    def _wait_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        # A thread that sleeps in waitpid sees the end at once and on every system; asyncio's own
        # child.wait() may also wait for the pipes, which a helper can hold open for ever.
        code = self._child.wait()
        if code >= 0:
            how = Exit(code=code)
        else:
            memory = -code == signal.SIGKILL and oom_kills() > self._kills_before
            how = Exit(signal=-code, out_of_memory=memory)
        with suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(self._ended, how)

    def _ended(self, how: Exit) -> None:
        if not self._exit.done():
            self._exit.set_result(how)

    async def wait(self) -> Exit:
        """Return when the child has ended."""
        return await asyncio.shield(self._exit)

    async def drain_output(self, timeout: float) -> None:
        """Wait until what was written before the end has been read, at most `timeout` seconds."""
        if self._readers:
            await asyncio.wait(self._readers, timeout=timeout)

    async def owns_port(self, port: int) -> bool:
        """Whether the child or one of its helpers listens on the port."""

        def owns() -> bool:
            return any(listens_on(process, port) for process in self._members())

        return await asyncio.to_thread(owns)

    async def stop(self, *, graceful: bool) -> bool:
        """SIGTERM to the group, SIGKILL when the time is over or at once; True when all are gone."""
        if graceful and not self._exit.done():
            self._signal(signal.SIGTERM)
            await self._group_ends(self._launcher.stop_timeout)
        gone = await self._kill_all()
        if gone:
            await self.drain_output(_LAST_WORDS)
            self._launcher.watch.remove(self.pid)
        for reader in self._readers:
            reader.cancel()
        return gone

    async def _group_ends(self, timeout: float) -> None:
        """Wait, so long at most, until the group has ended by itself."""
        began = time.monotonic()
        await asyncio.wait([self._exit], timeout=timeout)
        # A shell that did not exec its program dies at once; the backend behind it may need its time.
        with suppress(DeadlineError):
            await wait_until(
                self._group_has_ended,
                timeout=max(timeout - (time.monotonic() - began), 0),
                what=f"end of group {self.pid}",
            )

    async def _group_has_ended(self) -> bool:
        if not self._exit.done():
            return False
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True  # the usual case, without a look at every process
        except PermissionError:
            pass
        return not await asyncio.to_thread(group_members, self.pid)

    async def _kill_all(self) -> bool:
        def ended() -> bool:
            # Again and again: a group may still be forking while it is being killed.
            self._signal(signal.SIGKILL)
            members = self._members()
            for process in members:
                with suppress(psutil.Error):
                    process.kill()
            return not members

        async def gone() -> bool:
            return self._exit.done() and await asyncio.to_thread(ended)

        self._signal(signal.SIGKILL)
        try:
            await wait_until(gone, timeout=self._launcher.kill_timeout, what=f"end of {self.pid}")
        except DeadlineError:
            return False
        return True

    def _members(self) -> list[psutil.Process]:
        members = group_members(self.pid)
        known = {process.pid for process in members}
        marked = marked_processes(MARKER, self._uid)
        return members + [process for process in marked if process.pid not in known]

    def _signal(self, number: signal.Signals) -> None:
        # The pid stays ours until we have seen its end; a group lives as long as any member does.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def make_executable(run_file: Path) -> None:
    """Give the owner the right to execute, if nobody has it: archives often lose the bit."""
    mode = run_file.stat().st_mode
    if not mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH):
        run_file.chmod(mode | stat.S_IXUSR)


def _hint(error: OSError) -> str:
    match error.errno:
        case errno.ENOEXEC:
            return "; it is neither a program for this machine nor a script with a #! line"
        case errno.ENOENT:
            return (
                "; the file, or the interpreter in its #! line, is missing (or that line ends with a"
                " carriage return, as Windows writes it)"
            )
        case errno.EACCES:
            return "; make it executable, and check that its disk is not mounted noexec"
    return ""
