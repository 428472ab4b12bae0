"""Starts services by forking a process that has already imported them: see fork_server."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

from . import fork_server

_PROGRAM: Final = (sys.executable, "-m")
_T = TypeVar("_T")


class Spawned(Protocol):
    """Called with a process's output and its end."""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Called with data that the process wrote to its stdout (1) or stderr (2)."""

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Called when a pipe was closed."""

    def ended(self, code: int) -> None:
        """Called with the exit code of the process; negative for a signal."""


class ForkServer:
    """The client of a fork server. Use as an async context manager; leaving it leaves the services.

    If it fails (it was killed, or never started), it raises OSError, and services can be started like
    any program.
    """

    def __init__(
        self,
        modules: Sequence[str],
        environment: Mapping[str, str],
        pass_fds: Sequence[int],
        *,
        timeout: float,
    ) -> None:
        """`modules` are imported; its processes inherit `environment` and `pass_fds`.

        `timeout`: seconds for the imports, and for each answer, before services are started without it.
        """
        self._modules = modules
        self._environment = dict(environment)
        self._pass_fds = pass_fds
        self._timeout = timeout
        self._process: asyncio.subprocess.Process | None = None
        self._channel: socket.socket | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._numbers = itertools.count()
        self._asked: dict[int, tuple[asyncio.Future[int], Spawned]] = {}
        self._running: dict[int, Spawned] = {}

    async def __aenter__(self) -> Self:
        """Start to import."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, fork_server.LARGEST)
            self._process = await asyncio.create_subprocess_exec(
                *_PROGRAM,
                fork_server.__name__,
                str(theirs.fileno()),
                ",".join(self._modules),
                "-" * fork_server.ROOM,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=(theirs.fileno(), *self._pass_fds),
                start_new_session=True,
            )
        ours.setblocking(False)
        self._channel = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the fork server."""
        self._lost()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()  # it may still be importing
            await self._process.wait()

    def can(self, command: Sequence[str]) -> bool:
        """Return whether it can fork this command."""
        known = command[2:3] and command[2] in {each.rpartition(".")[0] for each in self._modules}
        return self._channel is not None and tuple(command[:2]) == _PROGRAM and bool(known)

    async def spawn(
        self, spawned: Spawned, command: Sequence[str], environment: Mapping[str, str], name: str
    ) -> int:
        """Start the command in a session of its own; return its pid. Raises OSError if it cannot."""
        await self._answered(asyncio.shield(self._ready))
        if self._channel is None:
            raise ConnectionResetError("the fork server is gone")
        number = next(self._numbers)
        request = {
            "number": number,
            "module": command[2],
            "arguments": list(command[3:]),
            "environment": dict(environment),
            "name": name,
        }
        data = json.dumps(request).encode()
        if len(data) > fork_server.LARGEST:
            raise OSError(
                errno.EMSGSIZE, "the command and its environment are too large to fork with"
            )
        loop = asyncio.get_running_loop()
        reads, writes = zip(os.pipe(), os.pipe(), strict=True)
        forked: asyncio.Future[int] = loop.create_future()
        self._asked[number] = forked, spawned
        try:
            try:
                socket.send_fds(self._channel, [data], writes)
            finally:
                for descriptor in writes:
                    os.close(descriptor)
            pid = await self._answered(forked)
        except BaseException as error:
            for descriptor in reads:
                os.close(descriptor)
            if isinstance(error, OSError):
                self._asked.pop(number, None)
            raise
        for number, descriptor in zip((1, 2), reads, strict=True):
            pipe = partial(_Pipe, spawned, number)
            await loop.connect_read_pipe(pipe, os.fdopen(descriptor, "rb", 0))
        return pid

    async def _answered(self, answer: asyncio.Future[_T]) -> _T:
        """Wait for an answer; a fork server that does not answer in time is ended."""
        try:
            async with asyncio.timeout(self._timeout):
                return await answer
        except TimeoutError:
            # Otherwise it might later fork a service that is now started without it.
            if self._process is not None:
                with suppress(ProcessLookupError):
                    self._process.kill()
            self._lost()
            raise

    def _read(self) -> None:
        assert self._channel is not None
        try:
            data = self._channel.recv(fork_server.LARGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._answer(json.loads(data))
        else:
            self._lost()

    def _answer(self, answer: Mapping[str, int]) -> None:
        if "number" in answer:
            forked, spawned = self._asked.pop(answer["number"])
            if forked.done():  # the caller gave up
                with suppress(ProcessLookupError):
                    os.kill(answer["pid"], signal.SIGKILL)
                return
            self._running[answer["pid"]] = spawned
            forked.set_result(answer["pid"])
        elif "status" in answer:
            if spawned_before := self._running.pop(answer["pid"], None):
                spawned_before.ended(answer["status"])
        elif not self._ready.done():
            self._ready.set_result(None)

    def _lost(self) -> None:
        """Called when the fork server is gone: watch its processes from here."""
        channel, self._channel = self._channel, None
        if channel is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(channel.fileno())
        channel.close()
        if not self._ready.done():
            self._ready.set_result(None)
        for forked, _ in self._asked.values():
            if not forked.done():
                forked.set_exception(ConnectionResetError("the fork server is gone"))
        self._asked.clear()
        for pid, spawned in self._running.items():
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                spawned.ended(fork_server.UNKNOWN)
                continue
            loop.add_reader(descriptor, self._gone, descriptor, spawned)
        self._running.clear()

    def _gone(self, descriptor: int, spawned: Spawned) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        spawned.ended(fork_server.UNKNOWN)


class _Pipe(asyncio.Protocol):
    """One of a process's streams."""

    def __init__(self, spawned: Spawned, number: int) -> None:
        self._spawned = spawned
        self._number = number

    def data_received(self, data: bytes) -> None:
        self._spawned.pipe_data_received(self._number, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._spawned.pipe_connection_lost(self._number, exc)
