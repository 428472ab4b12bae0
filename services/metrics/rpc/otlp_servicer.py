"""OpenTelemetry's collector service, for every sender of OTLP."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc

from services.metrics.values.collector import Collector
from services.metrics.values.otlp_store import OtlpStore

from . import otlp_convert

SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["MetricsService"].full_name
# 30 us each: other calls wait 8 ms at most for an export of any size.
_SLICE: Final = 256
# Senders log them; the first few are enough.
_REASONS: Final = 3


class OtlpServicer(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Receives exports."""

    def __init__(self, store: OtlpStore, collector: Collector, *, instance: uuid.UUID) -> None:
        """Put the points into `store`, and count them in `collector`; `instance` is this process."""
        self._own = str(instance)
        self._store = store
        self._collector = collector

    async def Export(
        self, request: pb.ExportMetricsServiceRequest, context: Any
    ) -> pb.ExportMetricsServiceResponse:
        """Store all valid points; the response counts the refused ones and gives the reasons."""
        reasons: Counter[str] = Counter()
        number = 0
        for number, point in enumerate(otlp_convert.points(request, own=self._own), 1):
            if reason := point if isinstance(point, str) else self._store.offer(point):
                reasons[reason] += 1
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        response = pb.ExportMetricsServiceResponse()
        self._collector.count_points(accepted=number - reasons.total(), rejected=reasons.total())
        if reasons:
            response.partial_success.rejected_data_points = reasons.total()
            response.partial_success.error_message = "; ".join(list(reasons)[:_REASONS])
        return response
