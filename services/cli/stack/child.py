"""One service's process, from its start to the end of its last log line."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from services.cli.failures import Failure
from services.common.line_splitter import LineSplitter

from .fork_client import ForkServer
from .merged_log import LONGEST_LINE

# The last lines may still be in the pipe when the process has ended; a grandchild may hold it open.
_DRAIN_TIMEOUT: Final = 0.5
_TAIL_LINES: Final = 40
_STDOUT: Final = 1
_NOT_STARTED: Final = 126
"""The exit code of what could not be executed, as shells have it."""


def called(name: str) -> str:
    """Return the name of a service in a sentence."""
    return "the metrics service" if name == "metrics" else f"the {name}"


class StartFailure(Failure):
    """A service did not become ready."""


class Child:
    """A running service. `ready` and `exited` are futures: its address, its exit code."""

    def __init__(self, name: str, on_line: Callable[[str, str], None]) -> None:
        """`on_line(name, line)` is called with each line of the service's output."""
        self.name = name
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[str] = loop.create_future()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.started = loop.time()
        self.pid = 0
        self.drained = asyncio.Event()
        self._on_line = on_line
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    async def start(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        forks: ForkServer | None = None,
    ) -> None:
        """Start the process in a session of its own, so that a terminal's Ctrl-C does not reach it.

        `forks` forks it if it can; otherwise it is started like any program.
        """
        loop = asyncio.get_running_loop()
        if forks is not None and forks.can(command):
            with suppress(OSError):
                name = f"corral-{self.name}"
                self.pid = await forks.spawn(_Protocol(self), command, env, name)
                return
        try:
            transport, _ = await loop.subprocess_exec(
                lambda: _Protocol(self),
                *command,
                stdin=subprocess.DEVNULL,
                env=dict(env),
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        except OSError as error:
            self.exited.set_result(
                _NOT_STARTED
            )  # callers that wait for its end must not wait forever
            self.drained.set()
            raise StartFailure(
                f"{called(self.name)} cannot be started: {error}",
                "check the installation of Corral",
            ) from error
        self.pid = transport.get_pid()

    async def until_ready(self, limit: float) -> str:
        """Return the service's address when it serves; StartFailure if it ends or takes too long."""
        events: set[asyncio.Future[Any]] = {self.ready, self.exited}
        await asyncio.wait(events, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if self.ready.done():
            return self.ready.result()
        if self.exited.done():
            raise self.start_failure()
        raise StartFailure(
            f"{called(self.name)} was not ready within {limit:g} s",
            "see its progress with `corral up --log-level debug`",
            reason="START_TIMEOUT",
        )

    async def stop(self, limit: float, hurry: asyncio.Event) -> bool:
        """Ask the process to end; kill its group at the limit, or as soon as `hurry` is set.

        Idempotent. Returns whether it ended by itself.
        """
        if self.pid and not self.exited.done():
            self._signal(signal.SIGTERM)
            hurried = asyncio.ensure_future(hurry.wait())
            try:
                events: set[asyncio.Future[Any]] = {self.exited, hurried}
                await asyncio.wait(events, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            finally:
                hurried.cancel()
        by_itself = not self.pid or self.exited.done()
        if not by_itself:
            self._signal(signal.SIGKILL)
            # Only the kernel can delay a SIGKILL, and then there is nothing to do but wait.
            await self.exited
        if self.pid:
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_TIMEOUT):
                    await self.drained.wait()
        return by_itself

    def ending(self) -> str:
        """Return how the process ended, in words."""
        code = self.exited.result()
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"

    def start_failure(self) -> StartFailure:
        """Return the failure of a process that ended before it was ready, with its own message."""
        program = f"corral-{self.name}: "
        messages = [line.removeprefix(program) for line in self._tail if line.startswith(program)]
        text = "; ".join(messages) or next((line for line in reversed(self._tail) if line), "")
        usage = self.exited.result() == 2
        hint = "fix it, then start again: see `corral up --help`" if usage else "see its log above"
        if "in use" in text.lower():
            flag = f"--{self.name}-http-listen" if "--http-" in text else f"--{self.name}-listen"
            hint = (
                f"choose another address with {flag}, or free ports for all with"
                " --listen 127.0.0.1:0"
            )
        message = f"{called(self.name)} could not start ({self.ending()})"
        return StartFailure(
            f"{message}: {text}" if text else message,
            hint,
            exit_code=2 if usage else 1,
            reason="START_FAILED",
        )

    def line(self, fd: int, text: str) -> None:
        """Handle a line of the process: the first `ready` on stdout sets its address, the rest is logged."""
        if fd == _STDOUT and not self.ready.done() and text.startswith("ready "):
            words = text.split()
            if len(words) == 3:
                self.ready.set_result(words[2])
                return
        self._tail.append(text)
        self._on_line(self.name, text)

    def _signal(self, number: int) -> None:
        # Not reaped before `exited` is set, so the group's number is still this process's own.
        if not self.exited.done():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)


class _Protocol(asyncio.SubprocessProtocol):
    """Passes a child's output and its exit code to it.

    Not asyncio's streams: their `wait` also waits for the pipes to be closed, and a process that the
    service left behind would keep them open.
    """

    def __init__(self, child: Child) -> None:
        self._child = child
        self._lines = {fd: LineSplitter(LONGEST_LINE) for fd in (1, 2)}
        self._open = 2
        self._transport: asyncio.SubprocessTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        assert isinstance(data, bytes)
        for line in self._lines[fd].feed(data):
            self._child.line(fd, line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd not in self._lines:
            return
        for line in self._lines[fd].feed(b""):
            self._child.line(fd, line)
        self._open -= 1
        if not self._open:
            self._child.drained.set()
            self._close()

    def process_exited(self) -> None:
        assert self._transport is not None
        code = self._transport.get_returncode()
        self.ended(-1 if code is None else code)

    def ended(self, code: int) -> None:
        self._child.exited.set_result(code)
        self._close()

    def _close(self) -> None:
        if self._transport is not None and self._child.exited.done() and not self._open:
            self._transport.close()
