"""Another OpenTelemetry collector, that ours hands its values on to."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

from grpc import aio
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc

from services.common.errors import DeadlineError, ServiceUnreachableError
from services.common.process.logging import get_logger
from services.common.rpc.channels import call
from services.metrics.values.family import Family

from . import otlp_convert

_log = get_logger(__name__)


class OtlpClient:
    """Sends families, as totals since its making."""

    def __init__(
        self, channel: aio.Channel, address: str, *, push_timeout: float, instance: uuid.UUID
    ) -> None:
        """Use this channel, which leads to `address`; `instance` tells our values from others'."""
        stub: Any = metrics_service_pb2_grpc.MetricsServiceStub(channel)  # type: ignore[no-untyped-call]
        self._export = stub.Export
        self._address = address
        self._push_timeout = push_timeout
        self._instance = str(instance)
        self._start = time.time_ns()
        self._told = ""

    async def push(self, families: Iterable[Family]) -> None:
        """Send all of them; return when they were taken."""
        request = otlp_convert.request(
            families, instance=self._instance, start=self._start, now=time.time_ns()
        )
        try:
            response = await call(self._export, request, timeout=self._push_timeout)
        except (ServiceUnreachableError, DeadlineError) as error:
            raise type(error)(
                f"the collector at {self._address} does not answer: {error}"
            ) from error
        refused = response.partial_success
        # Each push would say the same again.
        if refused.error_message != self._told:
            self._told = refused.error_message
            _log.warning(
                "the collector does not take all metrics",
                collector=self._address,
                points=refused.rejected_data_points,
                why=refused.error_message,
            )
