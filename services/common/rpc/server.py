"""The gRPC server of every service, and the run of its process from flags to exit code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, TypeAlias, TypeVar

from grpc import aio
from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from services.common.addresses import Address, parse_address
from services.common.config.settings import ConfigError, ServiceSettings
from services.common.errors import CorralError
from services.common.process import listen_address
from services.common.process.event_loop import EventLoop, loop_factory
from services.common.process.listen_address import AddressInUseError, StartError
from services.common.process.logging import configure, get_logger
from services.common.process.memory import settle_allocator, settle_memory, tidy_up
from services.common.process.stopping import StopSignals, StopWatchdog
from services.common.tasks import Background

from .call_records import AccessLog, CallAccounts, CallObserver
from .call_reporter import CallReporter
from .health import SERVICE as HEALTH
from .health import HealthServicer
from .interceptor_base import InterceptedServer
from .interceptors import CallInterceptor, ErrorInterceptor
from .mounts import (
    OVERSIZE,
    AccountingMount,
    AnyMount,
    GenericMount,
    Mount,
    Observe,
    server_options,
)

__all__ = [
    "AccountingMount",
    "AddressInUseError",
    "AnyMount",
    "Build",
    "GenericMount",
    "Mount",
    "Observe",
    "Server",
    "StartError",
    "run_server",
    "run_service",
    "serving",
]

_CHANNELZ: Final[str] = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
_log = get_logger(__name__)


_Settings = TypeVar("_Settings", bound=ServiceSettings)
Build: TypeAlias = Callable[
    [_Settings, AsyncExitStack, HealthServicer], Awaitable[Sequence[AnyMount]]
]


class Server:
    """A gRPC server with interceptors, health, channelz and reflection. `stop` can be called repeatedly."""

    def __init__(
        self,
        *,
        name: str,
        settings: ServiceSettings,
        health: HealthServicer,
        observers: Sequence[CallObserver] = (),
    ) -> None:
        """Nothing is opened before `start`."""
        self._name = name
        self._settings = settings
        self._health = health
        self._observers = tuple(observers)
        self._server: aio.Server | None = None
        self._bound = Address()
        self._socket: tuple[int, int] | None = None

    @property
    def address(self) -> str:
        """The address it serves on, with the actual port."""
        return str(self._bound)

    async def start(self, mounts: Sequence[AnyMount]) -> None:
        """Bind the address, serve, and report it in the health service. Raises StartError."""
        observers = [m.observer for m in mounts if isinstance(m, Observe)]
        accounts = CallAccounts(self._name, (AccessLog(), *self._observers, *observers))
        large = any(isinstance(mount, AccountingMount) for mount in mounts)
        limit = self._settings.max_message_size
        server = aio.server(options=server_options(limit, oversize=OVERSIZE if large else 1))
        # Outermost first: the recorded status is the one sent to the client.
        around = (
            CallInterceptor(accounts, stopping=self._health.stopping),
            ErrorInterceptor(max_message_size=limit if large else None),
        )
        intercepted: Any = InterceptedServer(server, around)
        names: list[str] = []
        for mount in mounts:
            if isinstance(mount, Mount):
                mount.add(intercepted)
                names.append(mount.service)
            elif isinstance(mount, GenericMount):
                intercepted.add_generic_rpc_handlers((mount.handler,))
                names += mount.names
            elif isinstance(mount, AccountingMount):
                server.add_generic_rpc_handlers((mount.make(accounts),))
                names += mount.names
        self._health.add_to(intercepted)
        # Named explicitly: the packages' own functions recognise an asyncio server by its class.
        channelz_pb2_grpc.add_ChannelzServicer_to_server(
            channelz.aio.ChannelzServicer(), intercepted
        )
        reflected = (*names, HEALTH, _CHANNELZ, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(reflected), intercepted
        )
        self._bind(server)
        await server.start()
        self._server = server
        self._socket = listen_address.identity(self._bound)
        for name in ("", *names):
            if name not in self._health.statuses:
                self._health.set(name, True, "started")

    async def stop(self, grace: float | None) -> None:
        """Refuse new calls, let running ones continue for `grace` seconds, then cancel them.

        A second call with a shorter grace shortens the first one's.
        """
        self._health.shut_down()
        if self._server is not None:
            await self._server.stop(grace)
            listen_address.release(self._bound, self._socket)

    async def ended(self) -> None:
        """Wait until the server no longer serves."""
        if self._server is not None:
            await self._server.wait_for_termination()

    def _bind(self, server: aio.Server) -> None:
        wanted = parse_address(self._settings.listen, field="listen", listen=True)
        listen_address.prepare(wanted)
        try:
            port = server.add_insecure_port(str(wanted))
        except RuntimeError as error:
            raise StartError(f"cannot listen on {wanted}: {error}") from error
        self._bound = wanted if wanted.is_unix else Address(host=wanted.host, port=port)


async def run_server(
    *,
    name: str,
    settings: ServiceSettings,
    mounts: Sequence[AnyMount],
    components: AsyncExitStack,
    health: HealthServicer,
    observers: Sequence[CallObserver] = (),
    signals: StopSignals | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain, then close the components in reverse order."""
    if signals is None:
        watchdog = StopWatchdog()
        with _signals(settings, watchdog) as caught:
            try:
                await run_server(
                    name=name,
                    settings=settings,
                    mounts=mounts,
                    components=components,
                    health=health,
                    observers=observers,
                    signals=caught,
                )
            finally:
                watchdog.disarm()
        return
    server = Server(name=name, settings=settings, health=health, observers=observers)
    try:
        await server.start(mounts)
        _announce(name, server.address)
        ended = asyncio.ensure_future(server.ended())
        await signals.unless_stopped(_shielded(ended))
        if ended.done():
            raise StartError("the server stopped by itself")
    finally:
        signals.begin_stop()
        await _drain(server, settings.grace, signals)
        await components.aclose()
    _log.info("stopped")


@asynccontextmanager
async def serving(
    *,
    name: str,
    settings: ServiceSettings,
    mounts: Sequence[AnyMount],
    health: HealthServicer | None = None,
    observers: Sequence[CallObserver] = (),
) -> AsyncIterator[Server]:
    """Serve within the running loop, without signals or a ready line: for tests and for embedding."""
    server = Server(
        name=name, settings=settings, health=health or HealthServicer(), observers=observers
    )
    await server.start(mounts)
    try:
        yield server
    finally:
        await server.stop(settings.grace)


def run_service(
    settings_class: type[_Settings],
    build: Build[_Settings],
    argv: Sequence[str] | None = None,
    *,
    event_loop: Callable[[_Settings], EventLoop] = lambda settings: "asyncio",
) -> int:
    """Run a service from its flags to its end; return the exit code.

    `build` is the service's wiring function. It enters its components on the stack, which is closed in
    reverse order after the drain, and returns the services to mount. `event_loop` chooses the loop. Exit
    codes: 0 after a clean stop, 1 after a failure, 2 for settings that are not valid.
    """
    try:
        settings = settings_class.load(argv)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    settle_allocator()
    configure(settings.log_level, settings.log_format, settings_class.service)
    watchdog = StopWatchdog()
    try:
        with asyncio.Runner(loop_factory=loop_factory(event_loop(settings))) as runner:
            runner.run(_main(settings, build, watchdog))
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the last resort: one line and an exit code
        # A known failure is one line; the traceback is logged at debug.
        known = isinstance(error, StartError | CorralError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        sys.stderr.write(f"{settings_class.program()}: {' '.join(text.split())}\n")
        _log.debug("failed", exc_info=True)
        return 1
    finally:
        watchdog.disarm()
    return 0


async def _main(settings: _Settings, build: Build[_Settings], watchdog: StopWatchdog) -> None:
    health = HealthServicer()
    with _signals(settings, watchdog) as signals:
        async with AsyncExitStack() as components:
            # Entered first, so that it closes last: the last call of a drain is reported too.
            reporter = CallReporter(settings.metrics, settings.service)
            await components.enter_async_context(reporter)
            try:
                mounts = await signals.unless_stopped(_awaited(build(settings, components, health)))
            except BaseException:
                # The components that were started must close, within the time limit.
                signals.begin_stop()
                raise
            if mounts is not None:
                settle_memory()
                background = await components.enter_async_context(Background())
                background.spawn(tidy_up(), name="tidy up")
                await run_server(
                    name=settings.service,
                    settings=settings,
                    mounts=mounts,
                    components=components,
                    health=health,
                    observers=(reporter,),
                    signals=signals,
                )


def _signals(settings: ServiceSettings, watchdog: StopWatchdog) -> StopSignals:
    return StopSignals(
        grace=settings.grace,
        limit=settings.stop_timeout,
        watchdog=watchdog,
        watch_fd=settings.watch_fd(),
    )


async def _drain(server: Server, grace: float, signals: StopSignals) -> None:
    stopping = asyncio.ensure_future(server.stop(grace))
    hurry = asyncio.ensure_future(signals.second.wait())
    try:
        await asyncio.wait({stopping, hurry}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await server.stop(0)
        await stopping
    finally:
        hurry.cancel()


def _announce(name: str, address: str) -> None:
    # The parent may have closed its end of the pipe; that must not stop the service.
    with suppress(OSError, ValueError):
        sys.stdout.write(f"ready {name} {address}\n")
        sys.stdout.flush()


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


async def _shielded(work: asyncio.Future[None]) -> None:
    await asyncio.shield(work)
