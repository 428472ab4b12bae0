"""The endpoint of one model: to clients, a `backend.Backend` server that is always up."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.errors import BackendNotReadyError, CorralError, NotImplementedYetError
from services.common.process.logging import get_logger
from services.common.tasks import Background
from services.loader.admission.connection_lease import CountedCalls
from services.loader.admission.meter import Caller
from services.loader.instances.instance import Instance, Lease
from services.loader.loader import Loader

from .connection import Connection
from .request_headers import Request

_log = get_logger(__name__)

_FRESH = ".new"
"""The name of a socket before it listens: no longer than any final name."""
_BACKLOG = 128
_AT_ONCE = 64
"""Connections to accept in a row before other work gets its turn."""
_PAUSE = 1.0
"""Seconds without accepting when the process has no descriptor left."""
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_WELL = b"\n\2OK"
"""A Reply with the message `OK`."""
_UNINITIALIZED = b""
"""A StatusResponse."""


@dataclass(frozen=True, slots=True)
class EndpointTimeouts:
    """The timeouts of an endpoint, in seconds."""

    cause: float
    linger: float
    handshake: float
    connect: float


class Endpoint:
    """The endpoint of one model: its listeners and its connections."""

    def __init__(
        self, name: str, loader: Loader, timeouts: EndpointTimeouts, tasks: Background
    ) -> None:
        """Create the endpoint; it does not listen yet."""
        self.name = name
        self.cause_timeout = timeouts.cause
        self.linger_timeout = timeouts.linger
        self.handshake_timeout = timeouts.handshake
        self.connect_timeout = timeouts.connect
        self._loader = loader
        self._tasks = tasks
        self._listeners: dict[str, socket.socket] = {}
        self._path: Path | None = None
        self._inode = (0, 0)
        self._paused: dict[str, asyncio.TimerHandle] = {}
        self.connections: set[Connection] = set()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoint's addresses, in gRPC's syntax."""
        return tuple(self._listeners)

    @property
    def calls(self) -> int:
        """The number of open calls, including those that wait for the model."""
        return sum(connection.calls for connection in self.connections)

    # Listening

    def listen_at(self, path: Path, mode: int) -> None:
        """Listen on a Unix socket with these permissions, replacing an old one. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh = path.with_name(_FRESH)
        try:
            with suppress(FileNotFoundError):
                fresh.unlink()
            os.fchmod(listener.fileno(), mode)  # from the first moment on
            listener.bind(str(fresh))
            fresh.chmod(mode)
            listener.listen(_BACKLOG)
            fresh.rename(path)  # no client finds a socket that does not answer yet
        except BaseException:
            listener.close()
            with suppress(OSError):
                fresh.unlink()
            raise
        self._path = path
        status = path.stat()
        self._inode = (status.st_dev, status.st_ino)
        self._listen(f"unix:{path}", listener)

    def listen_on(self, port: int) -> None:
        """Listen on a loopback port. Raises OSError."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._listen(f"127.0.0.1:{port}", listener)

    def _listen(self, address: str, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listeners[address] = listener
        loop = asyncio.get_running_loop()
        loop.add_reader(listener.fileno(), self._accept, address, listener)

    def _accept(self, address: str, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                _log.warning("a connection has to wait", model=self.name, why=error.strerror)
                self._pause(address, listener)
                return
            self.connections.add(Connection(sock, self))

    def _pause(self, address: str, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())

        def resume() -> None:
            self._paused.pop(address, None)
            loop.add_reader(listener.fileno(), self._accept, address, listener)

        self._paused[address] = loop.call_later(_PAUSE, resume)

    def stop_listening(self, address: str = "") -> None:
        """Stop listening on an address, or on all; open connections continue."""
        loop = asyncio.get_running_loop()
        for known in [address] if address else list(self._listeners):
            listener = self._listeners.pop(known)
            if timer := self._paused.pop(known, None):
                timer.cancel()
            else:
                loop.remove_reader(listener.fileno())
            if known.startswith("unix:"):
                self._remove_socket()
            listener.close()

    def _remove_socket(self) -> None:
        path, self._path = self._path, None
        if path is None:
            return
        with suppress(OSError):
            status = path.stat()
            if (status.st_dev, status.st_ino) == self._inode:  # not replaced since
                path.unlink()

    def drain(self) -> None:
        """Stop listening, and end each connection when its calls have ended."""
        self.stop_listening()
        for connection in list(self.connections):
            connection.drain()

    def close(self) -> None:
        """Stop listening and close all connections at once."""
        self.stop_listening()
        for connection in list(self.connections):
            connection.close()

    # For the connections

    async def acquire(self, caller: Caller) -> Lease:
        """Return a lease for a call, loading the model first if it must be. Raises CorralError."""
        return await self._loader.acquire(self.name, caller)

    def probe(self) -> Instance | None:
        """Return the instance if the model is ready; never loads it."""
        try:
            lease = self._loader.probe(self.name)
        except CorralError:
            return None
        if lease is None:
            return None
        lease.release()
        return lease.instance

    def count_calls(self, instance: Instance, stands_still: Callable[[], float]) -> CountedCalls:
        """Return a counter for a connection's calls."""
        return self._loader.count_calls(instance, stands_still=stands_still)

    def lost(self, instance: Instance, error: CorralError) -> None:
        """Called when an external backend is no longer reachable."""
        self._loader.report_lost(instance, error)

    def answer(self, request: Request) -> Coroutine[Any, Any, bytes] | bytes:
        """Return the response to a request that is not passed to a backend. Raises CorralError.

        The model loads with its own configuration. LoadModel only waits for that load, which is
        what LocalAI expects, since it always sends LoadModel. Free changes nothing: it would take
        the model from all other clients.
        """
        match request.method:
            case "LoadModel":
                return self._load()
            case "Free":
                return _result("the model stays: other clients use it too; its owner unloads it")
            case "Health":
                view = self._loader.get(self.name)
                if view.state in ("BACKOFF", "FAILED"):
                    raise BackendNotReadyError(
                        f"model {self.name!r} cannot be loaded now: {view.message}"
                    )
                return _WELL
            case "Status":
                return _UNINITIALIZED
            case "GetMetrics":
                raise self._loader.not_loaded(self.name)
        raise NotImplementedYetError(f"{request.path} is not served while the model is not loaded")

    async def _load(self) -> bytes:
        view = await self._loader.load(self.name)
        return _result(f"model {view.name!r} is loaded, with Corral's configuration of it")

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a background task."""
        return self._tasks.spawn(work, name=f"endpoint of {self.name}")

    def closed(self, connection: Connection) -> None:
        """Called when the connection is closed."""
        self.connections.discard(connection)


def _result(text: str) -> bytes:
    """Return a serialized Result with success set."""
    message = text.encode()[:127]
    return b"\n" + bytes((len(message),)) + message + b"\x10\1"
