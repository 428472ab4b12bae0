"""The four services together: started in order, kept running, stopped in order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from services.cli.client.addresses import SERVICES, Service
from services.cli.display.text import duration
from services.cli.failures import Failure
from services.common.backoff import Backoff

from . import arguments
from .arguments import Options
from .child import Child, StartFailure, called
from .fork_client import ForkServer
from .merged_log import MergedLog

# The number of a file descriptor; when it reaches EOF, the supervisor is gone, however it died, and
# the service must end too.
WATCH_FD: Final = "CORRAL_WATCH_FD"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, and how often they may fail."""

    import_timeout: float = 20.0
    """For the fork server's imports; after that each service imports its own code."""
    start_timeout: float = 60.0
    """From a process's start to its ready line."""
    stop_timeout: float = 70.0
    """From SIGTERM to SIGKILL, for one service. Longer than the services' own limit."""
    stable_after: float = 30.0
    """A service that ran this long started well: its failures are forgotten."""
    most_restarts: int = 5
    """Restarts in a row of one service that was never stable."""
    backoff: Backoff = field(default_factory=lambda: Backoff(initial=0.25, factor=2, maximum=10))


class Stack:
    """The services' processes. Use as an async context manager; leaving it ends what still runs."""

    def __init__(
        self,
        options: Options,
        log: MergedLog,
        *,
        limits: Limits | None = None,
        command: Callable[[Service], list[str]] = arguments.command,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`command` returns the program of a service."""
        self.addresses: dict[str, str] = {}
        """The address of each service, and `http`."""
        self.hurry = asyncio.Event()
        """Set it to kill services that have not stopped yet."""
        self._options = options
        self._log = log
        self._limits = limits or Limits()
        self._command = command
        self._environ = dict(os.environ if environ is None else environ)
        self._bound: dict[str, str] = {}
        self._children: dict[Service, Child] = {}
        self._keepers: set[asyncio.Task[None]] = set()
        self._read_end = -1
        self._write_end = -1
        self._forks: ForkServer | None = None

    async def __aenter__(self) -> Self:
        """Open the pipe that keeps the services alive, and start to import their code."""
        self._read_end, self._write_end = os.pipe()
        forks = ForkServer(
            arguments.MODULES,
            self._environ,
            [self._read_end],
            timeout=self._limits.import_timeout,
        )
        with suppress(OSError):  # without it each service is started as a program
            self._forks = await forks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything."""
        await self.stop()
        if self._forks is not None:
            await self._forks.__aexit__(kind, error, trace)
        os.close(self._read_end)
        os.close(self._write_end)

    async def start(self) -> None:
        """Start the services in order; StartFailure with the service's own message if one fails."""
        for services in arguments.START_ORDER:
            tasks = [asyncio.create_task(self._bring_up(service)) for service in services]
            try:
                await asyncio.gather(*tasks)
            finally:
                # After a failure the other services of this step must not go on starting.
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def keep(self) -> None:
        """Restart services that end, forever; Failure when a service fails too often."""
        self._keepers = {
            asyncio.create_task(self._keep(service), name=f"keep {service}") for service in SERVICES
        }
        done, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Stop the services in order and wait until they have ended. Idempotent."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers = set()
        for services in arguments.STOP_ORDER:
            await asyncio.gather(*(self._stop(service) for service in services))

    async def _bring_up(self, service: Service) -> None:
        child = Child(service, self._log.write)
        self._children[service] = child
        flags = arguments.for_service(service, self._options, self.addresses, self._bound)
        await child.start(
            [*self._command(service), *flags],
            {**self._environ, WATCH_FD: str(self._read_end)},
            [self._read_end],
            self._forks,
        )
        address = await child.until_ready(self._limits.start_timeout)
        self._bound[service] = address
        self.addresses[service] = arguments.reachable(address)
        if service == "metrics":
            self._note_http()

    def _note_http(self) -> None:
        file = (
            arguments.metrics_state_path(self._options, self._environ) / "metrics" / "http_address"
        )
        # Written before the service is ready; without it only a line of the summary is missing.
        with suppress(OSError, ValueError):
            address = file.read_text(encoding="utf-8").strip()
            self.addresses["http"] = arguments.reachable(address)
            self._bound["http"] = address

    async def _keep(self, service: Service) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            child = self._children[service]
            code = await asyncio.shield(child.exited)
            ran = loop.time() - child.started
            stable = child.ready.done() and ran >= self._limits.stable_after
            failures = 1 if stable else failures + 1
            what = f"{called(service)} ended ({child.ending()}) after {duration(ran)}"
            if failures > self._limits.most_restarts:
                raise Failure(
                    f"{what}, {failures} times in a row",
                    "see its log above; the other services are stopped too",
                    reason="SERVICE_FAILS",
                )
            delay = self._limits.backoff.delay(failures)
            self._write(
                f"{what}; starting it again in {duration(delay)}"
                f" (try {failures} of {self._limits.most_restarts})",
                level="warning" if code == 0 else "error",
            )
            await asyncio.sleep(delay)
            try:
                await self._bring_up(service)
            except StartFailure as failure:
                self._write(failure.message, level="error")
                # A service that hangs while starting must end before the next try needs its address.
                await self._children[service].stop(self._limits.stop_timeout, self.hurry)
            else:
                self._write(f"{called(service)} is back at {self.addresses[service]}")

    async def _stop(self, service: Service) -> None:
        child = self._children.get(service)
        if child is None or child.exited.done():
            return
        if not await child.stop(self._limits.stop_timeout, self.hurry):
            self._write(f"{called(service)} did not stop in time and was killed", level="warning")

    def _write(self, text: str, *, level: str = "info") -> None:
        self._log.write("corral", text, level=level)
