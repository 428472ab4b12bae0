"""Reports a service's calls to the metrics service, without delaying any call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import grpc

from corral.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from services.common.backoff import Backoff
from services.common.errors import CorralError, ServiceUnreachableError
from services.common.process.logging import get_logger

from .call_records import PROBES, CallRecord
from .channels import open_channel
from .status import from_rpc_error

METHOD: Final = "GRPC"
"""The label `method` of every gRPC call; for HTTP calls it is the verb."""
# Reporting the report of a call would never end.
_OWN: Final = (f"/{metrics_pb2.DESCRIPTOR.services_by_name['MetricsService'].full_name}/",)
_UNREPORTED: Final = (*PROBES, *_OWN, "/opentelemetry.proto.collector.")
# About 60 KB per message: far below any limit.
_CALLS_A_MESSAGE: Final = 500

_log = get_logger(__name__)


class CallReporter:
    """A CallObserver that sends the calls to the metrics service; an async context manager.

    Calls wait in a bounded queue and are sent together, `interval` seconds after the first. While the
    metrics service is unreachable they stay there, up to the bound. Each is sent at most once: a lost
    call is better than one that counts twice. Without an address nothing is kept or sent.
    """

    def __init__(
        self,
        address: str | None,
        service: str,
        *,
        interval: float = 0.5,
        capacity: int = 20_000,
        connect_timeout: float = 2.0,
        report_timeout: float = 5.0,
        close_timeout: float = 2.0,
        backoff: Backoff = Backoff(initial=0.2, maximum=5.0, jitter=0.2),  # noqa: B008 - immutable
    ) -> None:
        """Report the calls of `service` to the metrics service at `address`.

        `interval` is how long a call waits for others, `capacity` the size of the queue (10,000 calls
        take about 4 MB), `close_timeout` how long closing may take to send the rest.
        """
        self._address = address or ""
        self._service = service
        self._interval = interval
        self._connect_timeout = connect_timeout
        self._report_timeout = report_timeout
        self._close_timeout = close_timeout
        self._backoff = backoff
        self._capacity = capacity if self._address else 0
        self._waiting: deque[CallRecord] = deque()
        self._some = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away = self._dropping = False
        self.reported = 0
        """Calls that the metrics service accepted."""
        self.dropped = 0
        """Calls lost because the queue was full, or because their report failed."""

    def call_ended(self, record: CallRecord) -> None:
        """Queue a call for the next report. Takes a microsecond and never fails."""
        if len(self._waiting) < self._capacity:
            if record.method.startswith(_UNREPORTED):
                return
            self._waiting.append(record)
            if not self._some.is_set():
                self._some.set()
        elif self._capacity and not record.method.startswith(_UNREPORTED):
            self._drop(1, "too many wait")

    async def __aenter__(self) -> Self:
        """Start reporting."""
        if self._address:
            self._task = asyncio.create_task(self._run(), name="call reporter")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Report what is left, for as long as `close_timeout` allows."""
        if self._task is None:
            return
        self._closing.set()
        self._some.set()
        done, _ = await asyncio.wait({self._task}, timeout=self._close_timeout)
        if not done:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._waiting:
            _log.warning("calls were not reported", count=len(self._waiting), metrics=self._address)
            self._waiting.clear()
        self._task = None

    async def _run(self) -> None:
        failures = 0
        async with open_channel(self._address) as channel:
            stub: metrics_pb2_grpc.MetricsServiceAsyncStub = metrics_pb2_grpc.MetricsServiceStub(
                channel
            )
            while True:
                await self._some.wait()
                # Wait for more calls, to send them together.
                await self._pause(self._backoff.delay(failures) if failures else self._interval)
                while self._waiting:
                    try:
                        await self._report(channel, stub)
                    except CorralError as error:
                        failures += 1
                        self._failed(error)
                        break
                    failures = 0
                    self._worked()
                if not self._waiting:
                    self._some.clear()
                    if self._closing.is_set():
                        return
                elif self._closing.is_set():
                    # The metrics service is unreachable; a stop does not wait for it.
                    return

    async def _report(
        self, channel: grpc.aio.Channel, stub: metrics_pb2_grpc.MetricsServiceAsyncStub
    ) -> None:
        """Send the oldest calls, up to one message. Raises CorralError."""
        # Connect before taking calls from the queue: only those that were sent are lost with a connection.
        await self._connected(channel)
        calls = [self._waiting.popleft() for _ in range(min(len(self._waiting), _CALLS_A_MESSAGE))]
        stream = stub.ObserveApiCalls(timeout=self._report_timeout)
        try:
            await stream.write(self._message(calls))
            await stream.done_writing()
            response = await stream
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            self._drop(len(calls), "their report broke off")
            if isinstance(error, grpc.RpcError):
                raise from_rpc_error(error) from error
            raise ServiceUnreachableError("the report was cut short") from error
        except asyncio.CancelledError:
            stream.cancel()
            self._drop(len(calls), "closing took too long")
            raise
        self.reported += response.accepted
        if response.accepted < len(calls):
            self._drop(len(calls) - response.accepted, "the metrics service refused them")

    async def _connected(self, channel: grpc.aio.Channel) -> None:
        state = channel.get_state(try_to_connect=True)
        try:
            async with asyncio.timeout(self._connect_timeout):
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        raise ServiceUnreachableError("nothing listens there")
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError as error:
            raise ServiceUnreachableError("it cannot be connected to") from error

    def _message(self, calls: Sequence[CallRecord]) -> metrics_pb2.ObserveApiCallsRequest:
        message = metrics_pb2.ObserveApiCallsRequest()
        for record in calls:
            call = message.calls.add(
                method=METHOD, path=record.method, status=record.code, service=self._service
            )
            call.duration.FromNanoseconds(max(round(record.duration * 1e9), 0))
        return message

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    def _drop(self, count: int, why: str) -> None:
        # Logged once in a row: otherwise a full queue would add a line to the log for every call.
        if not self._dropping:
            self._dropping = True
            _log.warning("calls are not reported", why=why, metrics=self._address)
        self.dropped += count

    def _failed(self, error: CorralError) -> None:
        if not self._away:
            self._away = True
            _log.info("the metrics service is unreachable", metrics=self._address, error=str(error))

    def _worked(self) -> None:
        if self._away or self._dropping:
            _log.info("calls are reported again", metrics=self._address, dropped=self.dropped)
        self._away = self._dropping = False
