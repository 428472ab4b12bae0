"""The run of a service's process, from its flags to its exit code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeAlias, TypeVar

from services.common.config.settings import ConfigError, ServiceSettings
from services.common.errors import CorralError
from services.common.process.event_loop import EventLoop, loop_factory
from services.common.process.listen_address import StartError
from services.common.process.logging import configure, get_logger
from services.common.process.memory import settle_allocator, settle_memory, tidy_up
from services.common.process.stopping import StopSignals, StopWatchdog
from services.common.tasks import Background

from .call_records import CallObserver
from .call_reporter import CallReporter
from .health import HealthServicer
from .mounts import AnyMount
from .server import Server

_log = get_logger(__name__)

_Settings = TypeVar("_Settings", bound=ServiceSettings)
Build: TypeAlias = Callable[
    [_Settings, AsyncExitStack, HealthServicer], Awaitable[Sequence[AnyMount]]
]


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
