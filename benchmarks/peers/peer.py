"""A peer: how to start it as an echo server, call it, measure it, and end it."""

from __future__ import annotations

import asyncio
import os
import random
import string
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil

from tests.tools.processes import free_port
from tests.tools.service import environment as clean_environment

from .environment import Environment, UnavailableError

PROGRAMS = Path(__file__).with_name("programs")
START_TIMEOUT = 120.0
"""Seconds; Ray Serve needs about 20 on two busy processors."""
STOP_TIMEOUT = 10.0
PROBE_TIMEOUT = 5.0
PROBE_PAUSE = 0.02
REQUEST_TIMEOUT = 60.0
GONE_TIMEOUT = 5.0


@dataclass(frozen=True)
class Place:
    """The folder and ports of one start of a peer."""

    environment: Environment
    folder: Path
    port: int
    """The port of its gRPC server."""
    other_ports: tuple[int, int] = field(default_factory=lambda: (free_port(), free_port()))
    """For its other servers: HTTP, metrics."""


@dataclass(frozen=True)
class Command:
    """A command line, and the environment variables that it adds."""

    arguments: Sequence[str | Path]
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A running peer."""

    target: str
    """`host:port`."""
    method: str
    """`/service/Method`, unary."""
    request: bytes
    """The peer's own request message, serialized, with the payload in it."""
    request_file: Path
    """The same, in a file that exists as long as the peer runs."""
    payload: bytes
    """The bytes that the answer must contain."""
    metadata: tuple[tuple[str, str], ...]
    ready_seconds: float
    """From the start of its first process to the first answer."""
    process: psutil.Process

    def pids(self) -> list[int]:
        """Return its processes: the first one, and all its descendants."""
        with suppress(psutil.NoSuchProcess):
            return [self.process.pid, *(p.pid for p in self.process.children(recursive=True))]
        return []

    async def call(self, *, timeout: float = PROBE_TIMEOUT) -> bytes:
        """Call it once, on a new connection, and return the serialized answer."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.target, options=options) as channel:
            method: Any = channel.unary_unary(self.method)
            answer: bytes = await method(self.request, metadata=self.metadata, timeout=timeout)
        if self.payload not in answer:
            raise UnavailableError(f"the answer of {self.method} does not hold the payload")
        return answer


@dataclass(frozen=True)
class Peer:
    """A model server that can serve an echo."""

    title: str
    settings: str
    """The settings that differ from its defaults, for people."""
    environment: Environment
    method: str
    command: Callable[[Place], Command]
    """Prepares the folder and returns the command to start."""
    request: str | Callable[[bytes], bytes]
    """The program that writes the request (`FILE_OF_PAYLOAD FILE_OF_REQUEST`), or a function that returns it."""
    metadata: tuple[tuple[str, str], ...] = ()

    @asynccontextmanager
    async def start(self, *, payload_size: int = 1024) -> AsyncIterator[Running]:
        """Install the peer if necessary, start it, and yield it once it has answered; end it afterwards.

        Raises UnavailableError if it cannot be installed, does not start, or does not echo.
        """
        await self.environment.prepare()
        # The name is short because Ray keeps Unix sockets deep below it, whose paths have at most 107 bytes.
        with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            payload = _payload(payload_size)
            file = folder / "request.bin"
            request = await self._request(folder, payload)
            file.write_bytes(request)
            place = Place(self.environment, folder, free_port())
            command = self.command(place)
            began = time.perf_counter()
            process = await self._spawn(command, folder)
            try:
                running = Running(
                    f"127.0.0.1:{place.port}",
                    self.method,
                    request,
                    file,
                    payload,
                    self.metadata,
                    0.0,
                    psutil.Process(process.pid),
                )
                await self._answers(running, process, folder)
                seconds = time.perf_counter() - began
                yield Running(**{**vars(running), "ready_seconds": seconds})
            finally:
                await _end(process)

    async def _request(self, folder: Path, payload: bytes) -> bytes:
        if not isinstance(self.request, str):
            return self.request(payload)
        given, made = folder / "payload", folder / "made"
        given.write_bytes(payload)
        process = await asyncio.create_subprocess_exec(
            self.environment.python,
            PROGRAMS / self.request,
            given,
            made,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, errors = await asyncio.wait_for(process.communicate(), REQUEST_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise UnavailableError(f"{self.request} hangs") from None
        if process.returncode:
            raise UnavailableError(f"{self.request} failed: {errors.decode()[-500:]}")
        return made.read_bytes()

    async def _spawn(self, command: Command, folder: Path) -> asyncio.subprocess.Process:
        bin_folder = self.environment.folder / "bin"
        variables = clean_environment(
            PATH=f"{bin_folder}:{os.environ.get('PATH', '')}",
            VIRTUAL_ENV=str(self.environment.folder),
            HOME=str(folder),
        )
        # It has the repository's packages, which are not for the peer.
        variables.pop("PYTHONPATH", None)
        with (folder / "log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", PROGRAMS / "keep_together.py", *command.arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**variables, **command.variables},
                start_new_session=True,
            )

    async def _answers(
        self, running: Running, process: asyncio.subprocess.Process, folder: Path
    ) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                await running.call()
                return
            except grpc.aio.AioRpcError as error:
                why = f"{error.code().name}: {error.details()}"
            if process.returncode is not None or time.monotonic() > deadline:
                ended = "ended" if process.returncode is not None else "does not answer"
                said = (folder / "log").read_text(errors="replace")[-1500:]
                raise UnavailableError(f"{self.title} {ended} ({why}); it said:\n{said}")
            await asyncio.sleep(PROBE_PAUSE)


def _payload(size: int) -> bytes:
    """Return letters that no message contains by chance, the same in each run."""
    return "".join(random.Random(size).choices(string.ascii_letters, k=size)).encode()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask the first process to end, and kill all the processes that remain."""
    tree: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
    if process.returncode is None:
        process.kill()
        await process.wait()
    for each in tree:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    await asyncio.to_thread(psutil.wait_procs, tree, GONE_TIMEOUT)
