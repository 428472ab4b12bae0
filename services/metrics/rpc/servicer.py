"""MetricsService over gRPC: check, call the domain, convert."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from corral.metrics.v1 import metrics_pb2 as pb
from corral.metrics.v1 import metrics_pb2_grpc
from services.metrics.values.collector import Collector
from services.metrics.values.family import Family, select

from . import convert
from .client_stream import until_stopping

SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["MetricsService"].full_name
# 11 us each: other calls wait 3 ms at most for a message of a million.
_SLICE: Final = 256


class MetricsServicer(metrics_pb2_grpc.MetricsServiceServicer):
    """Counts reported calls, and answers queries."""

    def __init__(
        self,
        collector: Collector,
        *,
        read: Callable[[], Awaitable[list[Family]]],
        flush: Callable[[], Awaitable[None]],
        stopping: asyncio.Event,
        stream_quiet: float,
    ) -> None:
        """Count in `collector`; `read` returns the families of all sources."""
        self._collector = collector
        self._read = read
        self._flush = flush
        self._stopping = stopping
        self._stream_quiet = stream_quiet

    async def ObserveApiCall(
        self, request: pb.ObserveApiCallRequest, context: Any
    ) -> pb.ObserveApiCallResponse:
        """Count one call."""
        self._collector.observe(convert.call_of(request.call))
        return pb.ObserveApiCallResponse()

    async def ObserveApiCalls(
        self, request_iterator: AsyncIterator[pb.ObserveApiCallsRequest], context: Any
    ) -> pb.ObserveApiCallsResponse:
        """Count calls until the client ends its stream, or this service stops."""
        total = pb.ObserveApiCallsResponse()
        async for message in until_stopping(
            request_iterator, self._stopping, quiet=self._stream_quiet
        ):
            for start in range(0, len(message.calls), _SLICE):
                some = message.calls[start : start + _SLICE]
                accepted, rejected = self._collector.observe_all(map(convert.call_of, some))
                total.accepted += accepted
                total.rejected += rejected
                await asyncio.sleep(0)
        return total

    async def QueryMetrics(
        self, request: pb.QueryMetricsRequest, context: Any
    ) -> pb.QueryMetricsResponse:
        """Return the selected metrics."""
        labels = convert.label_filter(request.labels)
        return convert.response(select(await self._read(), request.names, labels))

    async def Flush(self, request: pb.FlushRequest, context: Any) -> pb.FlushResponse:
        """Save the values, and push them to the OTLP endpoint if there is one."""
        recorded = self._collector.recorded_calls
        await self._flush()
        return pb.FlushResponse(recorded_calls=recorded)
