"""Starting backends as child processes of the loader."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from services.common.errors import BackendStartError

from .adopted import AdoptedProcess
from .group import ProcessGroup, Surroundings
from .interface import MARKER, Exit, ProcessSpec
from .lookup import oom_kills
from .pipes import LineSink


class LocalLauncher:
    """Starts backends as child processes, and takes over those of earlier loaders."""

    def __init__(self, around: Surroundings) -> None:
        """Share these with all processes."""
        self._around = around

    async def launch(self, spec: ProcessSpec, sink: LineSink) -> LocalProcess:
        """Start it in a session of its own, stdin from /dev/null, in the run file's folder."""
        kills_before = oom_kills()
        with ExitStack() as undo, ExitStack() as done:
            try:
                make_executable(spec.run_file)
                writers: list[int] = [subprocess.PIPE, subprocess.PIPE]
                outputs: Sequence[IO[bytes] | None] = ()
                if self._around.pipes is not None:
                    writers, outputs = self._around.pipes.create(spec.uid)
                    undo.callback(self._around.pipes.remove, spec.uid)
                    for writer in writers:
                        done.callback(os.close, writer)
                    for output in outputs:
                        undo.callback(output.close)
                # Not asyncio's: its wait() differs between versions. Spawning takes about a millisecond.
                child = subprocess.Popen(  # noqa: ASYNC220
                    [str(spec.run_file), *spec.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=writers[0],
                    stderr=writers[1],
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
            undo.pop_all()
        self._around.watch.add(child.pid, spec.uid)
        # No await between here and the return: a caller that is cancelled must not lose the child.
        outputs = outputs or (child.stdout, child.stderr)
        return LocalProcess(child, spec.uid, kills_before, self._around, outputs, sink)

    def adopt(self, uid: str, pid: int, birth: str, sink: LineSink) -> AdoptedProcess:
        """Take over what an earlier loader of this machine started; BackendStartError if it is gone."""
        return AdoptedProcess.take(uid, pid, birth, self._around, sink)


class LocalProcess(ProcessGroup):
    """A child process and its group."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        uid: str,
        kills_before: int,
        around: Surroundings,
        outputs: Sequence[IO[bytes] | None],
        sink: LineSink,
    ) -> None:
        """`child` was just started; begin to read its pipes, and to wait for its end."""
        super().__init__(child.pid, uid, around, outputs, sink)
        self._child = child
        self._kills_before = kills_before
        try:
            self._watch_exit(os.pidfd_open(child.pid))
        except (AttributeError, OSError):  # another system, or no descriptor left
            threading.Thread(
                target=self._wait_in_thread,
                args=(asyncio.get_running_loop(),),
                name=f"wait-{child.pid}",
                daemon=True,
            ).start()

    def _leads(self) -> bool:
        # Its end has been seen long before it is reaped: until then no other process can get its
        # pid.
        return self._child.returncode is None

    def _how_it_ended(self) -> Exit:
        try:
            ended = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            ended = None  # we inherited that SIGCHLD is ignored: the system reaps by itself
        if ended is None:
            return Exit(code=self._child.wait())
        if ended.si_code == os.CLD_EXITED:
            return Exit(code=ended.si_status)
        return self._killed_by(ended.si_status)

    def _release_pid(self) -> None:
        self._child.poll()

    def _wait_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        # asyncio's own child.wait() may also wait for the pipes, which a helper can hold open
        # forever.
        code = self._child.wait()
        how = Exit(code=code) if code >= 0 else self._killed_by(-code)
        with suppress(RuntimeError):  # the loop is closed: no task waits any more
            loop.call_soon_threadsafe(self._ended, how)

    def _killed_by(self, number: int) -> Exit:
        memory = number == signal.SIGKILL and oom_kills() > self._kills_before
        return Exit(signal=number, out_of_memory=memory)


def make_executable(run_file: Path) -> None:
    """Give the owner the right to execute, if no user has it: archives often lose the bit."""
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
