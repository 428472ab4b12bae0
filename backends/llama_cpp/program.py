"""The process: its arguments, its socket, its signals, its end."""

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from grpc import aio

from . import NAME, VERSION, address, parent
from .address import Address, AddressError
from .engine import describe_status
from .interceptors import ErrorInterceptor, TokenInterceptor
from .model import ModelHost
from .scratch import Scratch
from .servicer import SERVICE, BackendServicer, handlers

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "LOCALAI_GRPC_AUTH_TOKEN"
DEFAULT_ADDRESS = "127.0.0.1:50051"
MAX_MESSAGE = 50 * 1024 * 1024
# How long requests may still take after SIGTERM, and then the model to be freed.
STOP_GRACE = 1.0
FREE_GRACE = 0.5
EXIT_BIND, EXIT_ORPHAN, EXIT_SECOND_SIGNAL = 1, 1, 130
_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # Two processes on one port would share its calls.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True)
class Arguments:
    """What the command line and the environment ask for."""

    address: Address
    token: str


def arguments(argv: Sequence[str], env: Mapping[str, str]) -> Arguments:
    """Read the command line.

    Raises:
        AddressError: `--addr` is not an address.
    """
    parser = argparse.ArgumentParser(prog=NAME, description="Serves a GGUF model over gRPC.")
    parser.add_argument(
        "--addr", default=DEFAULT_ADDRESS, help="host:port or unix:/path (default: %(default)s)"
    )
    parser.add_argument("--version", action="version", version=f"{NAME} {VERSION}")
    parsed = parser.parse_args(argv)
    return Arguments(address.parse(parsed.addr), env.get(TOKEN_VARIABLE, ""))


class Announcement:
    """The one line on stdout; everything else that is written there goes to stderr.

    llama.cpp prints to stdout at times, so the descriptor itself is moved away.
    """

    def __init__(self) -> None:
        """Redirect stdout of all other code to stderr."""
        sys.stdout.flush()
        self._stdout = os.dup(1)
        os.dup2(2, 1)

    def say(self, bound: str) -> None:
        """Write the ready line with the address, for the parent process."""
        # The parent may have closed its end; that must not stop the backend.
        with contextlib.suppress(OSError):
            os.write(self._stdout, f"ready {NAME} {bound}\n".encode())


class Program:
    """The server, from its start to its end."""

    def __init__(self, given: Arguments, announcement: Announcement, parent_pid: int) -> None:
        """Prepare; nothing is opened yet. `parent_pid` is the parent process."""
        self._given = given
        self._announcement = announcement
        self._parent = parent_pid
        self._scratch = Scratch()
        self._socket = 0
        self._stop = asyncio.Event()
        self._host = ModelHost(self._scratch, self._engine_crashed)

    async def run(self) -> int:
        """Serve until a signal comes; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        parent.watch(os.environ, self._parent, self._orphaned)
        server = self._server()
        stop_health = await _add_health(server)
        try:
            bound = self._bind(server)
        except (AddressError, RuntimeError) as error:
            _complain(f"can not listen on {self._given.address.target}: {error}")
            return EXIT_BIND
        await server.start()
        self._announcement.say(bound)
        log.info("serving on %s", bound)
        warm = asyncio.create_task(self._host.warm_up())
        await self._stop.wait()
        log.info("stopping")
        if stop_health is not None:
            await stop_health()
        # Requests are ended at once: a long generation would not finish in time anyway. The kill also
        # ends a load, which cannot be interrupted otherwise.
        warm.cancel()
        self._host.kill()
        freeing = asyncio.create_task(self._host.free())
        await server.stop(STOP_GRACE)
        await asyncio.wait({freeing}, timeout=FREE_GRACE)
        self.clean_up()
        return 0

    def clean_up(self) -> None:
        """End and remove what would stay behind; may be called from any thread, and twice."""
        self._host.kill()
        address.remove(self._given.address, self._socket)
        self._scratch.remove()

    def _server(self) -> aio.Server:
        token = self._given.token
        interceptors: list[aio.ServerInterceptor] = [TokenInterceptor(token)] if token else []
        interceptors.append(ErrorInterceptor())
        server = aio.server(interceptors=interceptors, options=_OPTIONS)
        server.add_generic_rpc_handlers((handlers(BackendServicer(self._host)),))
        return server

    def _bind(self, server: aio.Server) -> str:
        address.make_way(self._given.address)
        # The socket file is this user's alone.
        mask = os.umask(0o077)
        try:
            port = server.add_insecure_port(self._given.address.target)
        finally:
            os.umask(mask)
        self._socket = address.inode(self._given.address)
        return self._given.address.bound(port)

    def _signalled(self) -> None:
        if self._stop.is_set():
            self.clean_up()
            os._exit(EXIT_SECOND_SIGNAL)
        self._stop.set()

    def _orphaned(self) -> None:
        self.clean_up()
        os._exit(EXIT_ORPHAN)

    def _engine_crashed(self, status: int, reason: str) -> None:
        """End as the engine ended, so that the parent sees the same exit status."""
        if self._stop.is_set():
            return
        log.error("the engine is gone (%s): %s", describe_status(status), reason)
        self.clean_up()
        if status < 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core is enough
            with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
                signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        os._exit(status if status > 0 else EXIT_BIND)


def _complain(text: str) -> None:
    sys.stderr.write(f"{NAME}: {text}\n")


async def _add_health(server: aio.Server) -> Callable[[], Awaitable[None]] | None:
    """Serve grpc.health.v1 if its package is installed; return the function that starts its shutdown."""
    try:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    except ImportError:
        return None
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", SERVICE):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    leave: Callable[[], Awaitable[None]] = servicer.enter_graceful_shutdown
    return leave


def main(argv: Sequence[str], parent_pid: int) -> int:
    """Run the backend; returns the exit code."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        given = arguments(argv, os.environ)
    except AddressError as error:
        _complain(f"--addr: {error}")
        return EXIT_BIND
    announcement = Announcement()

    async def run() -> int:
        return await Program(given, announcement, parent_pid).run()

    return asyncio.run(run())
