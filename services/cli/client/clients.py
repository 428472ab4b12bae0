"""Connections to the services: opened at first use, closed together, with errors that name the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
from google.longrunning import operations_pb2_grpc
from grpc import aio
from grpc_health.v1 import health_pb2_grpc

from corral.client import aio as direct
from corral.gallery.v1 import gallery_pb2_grpc
from corral.loader.v1 import loader_pb2_grpc
from corral.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from corral.monitor.v1 import monitor_pb2_grpc
from services.cli.failures import Failure, Lost, Unreachable
from services.common.errors import CorralError
from services.common.rpc.channels import open_channel
from services.common.rpc.status import DETAILS_KEY, from_rpc_error

from .addresses import Service, ServiceAddress

_Response = TypeVar("_Response")

# The deadline of a call that only reads or records something; far above what a busy machine needs.
CALL_TIMEOUT: Final = 10.0
# The deadline of a report whose result does not matter.
_OBSERVE_TIMEOUT: Final = 1.0
# How long a command that follows something waits for a server that is gone.
RECONNECT_TIMEOUT: Final = 60.0
# gRPC's messages for a connection that was never made, over its versions and kinds of addresses.
_NEVER_CONNECTED: Final = (
    "failed to connect",
    "connection refused",
    "dns resolution failed",
    "name resolution",
    "no such file",
    "connection timed out",
    "no route to host",
)


class Clients:
    """The stubs of the four services. Use as an async context manager."""

    def __init__(self, addresses: Mapping[Service, ServiceAddress]) -> None:
        """No connection is opened yet."""
        self.addresses = dict(addresses)
        self._channels: dict[Service, aio.Channel] = {}

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all channels; calls that still run are cancelled."""
        for channel in self._channels.values():
            await channel.close()

    @cached_property
    def loader(self) -> loader_pb2_grpc.LoaderServiceAsyncStub:
        """The loader's control plane."""
        return loader_pb2_grpc.LoaderServiceStub(self.channel("loader"))

    def model(self, name: str) -> direct.Model:
        """Return one model's data plane, direct if possible, or through the loader. The caller closes it."""
        return direct.connect(name, self.addresses["loader"].address)

    @cached_property
    def gallery(self) -> gallery_pb2_grpc.GalleryServiceAsyncStub:
        """The gallery."""
        return gallery_pb2_grpc.GalleryServiceStub(self.channel("gallery"))

    @cached_property
    def operations(self) -> Any:
        """The gallery's long-running operations."""
        return operations_pb2_grpc.OperationsStub(self.channel("gallery"))

    @cached_property
    def monitor(self) -> monitor_pb2_grpc.MonitorServiceAsyncStub:
        """The monitor."""
        return monitor_pb2_grpc.MonitorServiceStub(self.channel("monitor"))

    @cached_property
    def metrics(self) -> metrics_pb2_grpc.MetricsServiceAsyncStub:
        """The metrics service."""
        return metrics_pb2_grpc.MetricsServiceStub(self.channel("metrics"))

    def health(self, service: Service) -> Any:
        """Return the stub of a service's standard health service."""
        return health_pb2_grpc.HealthStub(self.channel(service))

    def channel(self, service: Service) -> aio.Channel:
        """Return the channel to a service."""
        if service not in self._channels:
            self._channels[service] = open_channel(self.addresses[service].address)
        return self._channels[service]

    async def call(
        self,
        service: Service,
        method: aio.UnaryUnaryMultiCallable[Any, _Response],
        request: Any,
        *,
        timeout: float = CALL_TIMEOUT,
    ) -> _Response:
        """Make a unary call with a deadline; failures are CorralError, or Unreachable and Lost."""
        with self.explaining(service):
            return await method(request, timeout=timeout)

    async def observe(self, path: str, status: str, seconds: float) -> None:
        """Count a direct call to a backend in the metrics, if `corral up` runs them.

        A count that is lost does not fail the call.
        """
        if not all(self.addresses[each].source == "up" for each in ("loader", "metrics")):
            return
        call = metrics_pb2.ApiCall(method="GRPC", path=path, status=status, service="backend")
        call.duration.FromNanoseconds(int(seconds * 1e9))
        request = metrics_pb2.ObserveApiCallRequest(call=call)
        with suppress(CorralError, Failure, grpc.RpcError):
            await self.call(
                "metrics", self.metrics.ObserveApiCall, request, timeout=_OBSERVE_TIMEOUT
            )

    async def stream(
        self,
        service: Service,
        method: aio.UnaryStreamMultiCallable[Any, _Response],
        request: Any,
        *,
        timeout: float | None = None,
    ) -> AsyncGenerator[_Response, None]:
        """Yield a stream's messages; failures as in `call`. Left early, the call is cancelled."""
        with self.explaining(service):
            running = method(request, timeout=timeout)
            try:
                async for message in running:
                    yield message
            finally:
                running.cancel()

    @contextmanager
    def explaining(self, service: Service) -> Iterator[None]:
        """Turn gRPC's errors of calls to this service into ours."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._explain(service, error) from error
        except asyncio.CancelledError:
            # gRPC raises this also for a call that the server ended with CANCELLED.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise Lost(
                service, self.addresses[service].address, "cancelled by the server"
            ) from None

    def _explain(self, service: Service, error: Any) -> CorralError | Unreachable | Lost:
        trailers = dict(error.trailing_metadata() or ()) if error.trailing_metadata() else {}
        if error.code() is not grpc.StatusCode.UNAVAILABLE or DETAILS_KEY in trailers:
            return from_rpc_error(error)
        known = self.addresses[service]
        text = " ".join((error.details() or "").split())
        if not any(words in text.lower() for words in _NEVER_CONNECTED):
            return Lost(service, known.address, text)
        hints = {
            "up": "`corral up` runs, but this service does not answer: look at its log",
            "given": "is it running there? start all services with `corral up`",
            "default": "is it running? start it with `corral up`",
        }
        return Unreachable(service, known.address, hints[known.source])
