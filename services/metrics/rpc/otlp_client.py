"""Client of another OpenTelemetry collector, to which all values are pushed."""

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
    """Sends families as totals since the client was created."""

    def __init__(
        self, channel: aio.Channel, address: str, *, push_timeout: float, instance: uuid.UUID
    ) -> None:
        """`channel` leads to `address`; `instance` identifies this process as the sender."""
        stub: Any = metrics_service_pb2_grpc.MetricsServiceStub(channel)
        self._export = stub.Export
        self._address = address
        self._push_timeout = push_timeout
        self._instance = str(instance)
        self._start = time.time_ns()
        self._last_refusal = ""

    async def push(self, families: Iterable[Family]) -> None:
        """Send the families, and wait for the answer."""
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
        # Logged once: every push would repeat it.
        if refused.error_message != self._last_refusal:
            self._last_refusal = refused.error_message
            _log.warning(
                "the collector does not take all metrics",
                collector=self._address,
                points=refused.rejected_data_points,
                why=refused.error_message,
            )
