"""Waits until a starting backend is ready: by events, not by a poll every few seconds.

Three things race: the child announces itself on stdout (`ready <name> <address>`, as Corral's own do),
its socket takes a connection (tried every 10 ms, for foreign ones), or it ends. Then one Health call,
on a fresh channel: gRPC's own back-off on a channel that has failed once costs up to a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from services.common.addresses import parse_address
from services.common.errors import (
    BackendNotReadyError,
    BackendStartError,
    CorralError,
    ServiceUnreachableError,
)
from services.loader.processes.interface import BackendProcess, Exit

from .instance import Connection

CONNECT_STEP = 0.01
"""Seconds between attempts to connect: 10 ms are not noticeable in any start."""
SLOW_STEP = 0.1
"""The same after the first seconds, when 10 ms no longer matter, and between two Health calls."""
_QUICK_SECONDS = 3.0


class PortTakenError(Exception):
    """Another process listens on the port that was chosen for the backend."""


class Readiness:
    """Waits for one backend, until a deadline."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float,
        health_timeout: float,
        connect: Callable[[], Connection],
        describe_exit: Callable[[Exit], CorralError],
    ) -> None:
        """`connect` opens a fresh connection; `describe_exit` returns the error for its exit."""
        self.announced = asyncio.Event()
        self._address = parse_address(address)
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._health_timeout = health_timeout
        self._connect = connect
        self._describe_exit = describe_exit
        self._failure = "nothing listens at its address"

    async def wait(self, process: BackendProcess | None) -> Connection:
        """Return a connection to the backend once it answers Health.

        Raises BackendStartError as soon as the process has ended, BackendNotReadyError at the deadline,
        PortTakenError if another process would answer.
        """
        exit_seen = asyncio.ensure_future(process.wait()) if process is not None else None
        probe = asyncio.ensure_future(self._probe(process))
        handed_over = False
        racers: list[asyncio.Task[Any]] = [probe] if exit_seen is None else [probe, exit_seen]
        try:
            await asyncio.wait(racers, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
            if probe.done() and isinstance(probe.exception(), PortTakenError) and exit_seen:
                # A backend that has just died does not own its port either.
                await asyncio.wait([exit_seen], timeout=CONNECT_STEP)
            if probe.done() and not (exit_seen and exit_seen.done() and probe.exception()):
                handed_over = True
                return probe.result()
            if process is not None and exit_seen is not None and exit_seen.done():
                # The last lines that it wrote are the best explanation.
                await process.drain_output(SLOW_STEP)
                raise self._describe_exit(exit_seen.result())
            raise BackendNotReadyError(
                f"grpc service not ready: no answer within {self._timeout:g} s ({self._failure});"
                " raise grpc.attempts in the model's configuration if it needs longer"
            )
        finally:
            for racer in racers:
                racer.cancel()
            if not probe.done():
                await asyncio.wait([probe])  # it closes its connection on the way out
            elif not (handed_over or probe.exception()):
                await probe.result().close()  # the start was cancelled at this very moment

    async def _probe(self, process: BackendProcess | None) -> Connection:
        await self._connectable()
        # The token must not go to another process that took the port first.
        local = process is not None and not self._address.is_unix
        if local and process and not await process.owns_port(self._address.port):
            raise PortTakenError
        while True:
            connection = self._connect()
            healthy = False
            try:
                healthy = await connection.health(
                    max(min(self._health_timeout, self._deadline - time.monotonic()), CONNECT_STEP)
                )
                if healthy:
                    return connection
                self._failure = "it does not answer OK to Health"
            except ServiceUnreachableError:
                self._failure = "its socket is open but does not speak gRPC yet"
            except CorralError as error:
                self._failure = f"Health fails: {error}"
            finally:
                if not healthy:
                    await connection.close()
            await self._pause(SLOW_STEP)

    async def _connectable(self) -> None:
        began = time.monotonic()
        while not await self._takes_connection():
            slow = time.monotonic() - began > _QUICK_SECONDS
            await self._pause(SLOW_STEP if slow else CONNECT_STEP)

    async def _takes_connection(self) -> bool:
        address = self._address
        try:
            if address.path:
                _, writer = await asyncio.open_unix_connection(address.path)
            else:
                _, writer = await asyncio.open_connection(address.host, address.port)
        except OSError:
            return False
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait for the announcement, at most `seconds`."""
        waiting = asyncio.ensure_future(self.announced.wait())
        try:
            done, _ = await asyncio.wait([waiting], timeout=seconds)
            if done:
                self.announced.clear()
        finally:
            waiting.cancel()


def start_error(backend: str, how: Exit, last_lines: list[str]) -> BackendStartError:
    """Return the error for a process that ended before it was ready."""
    said = f": {last_lines[-1]}" if last_lines else ""
    return BackendStartError(
        f"grpc service not ready: backend {backend} {how} before it answered{said}",
        metadata={"backend": backend, "exit": str(how), "stderr": "\n".join(last_lines)},
    )
