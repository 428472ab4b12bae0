"""The process of the metrics service: its settings and its wiring."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc

from corral.metrics.v1 import metrics_pb2_grpc
from services.common import binding
from services.common.addresses import parse_address
from services.common.errors import DeadlineError
from services.common.health import HealthServicer
from services.common.server import AnyMount, Mount, run_service

from . import otlp_servicer
from .collector import Collector
from .config import MetricsSettings
from .exporter import Exporter, HttpLimits
from .exposition import Page, render
from .family import Family, merged
from .instruments import BOUNDS, KINDS
from .otlp_servicer import OtlpServicer
from .received import Received
from .servicer import SERVICE, MetricsServicer
from .state import StateFolder

_T = TypeVar("_T")


async def build(
    settings: MetricsSettings, stack: AsyncExitStack, health: HealthServicer
) -> Sequence[AnyMount]:
    """Make the collector and what reads it. On the way down the order is:

    calls end, then scrapes end, then the last values are kept, then the collector closes.
    """
    collector = Collector(
        max_label_values=settings.max_label_values,
        max_series=settings.max_series,
        max_label_length=settings.max_label_length,
    )
    stack.callback(collector.close)
    received = Received(
        own=KINDS,
        own_bounds=BOUNDS,
        max_series=settings.max_otlp_series,
        max_label_length=settings.max_label_length,
        stale_after=settings.otlp_stale_after,
    )
    state = StateFolder(settings.state_path / "metrics")

    def families() -> list[Family]:
        return merged(collector.families(), received.families())

    def scrape(accept: str = "", accept_encoding: str = "") -> Page:
        return render(families(), accept=accept, accept_encoding=accept_encoding)

    async def read() -> list[Family]:
        return await _in_thread(families, settings.query_timeout)

    async def keep() -> None:
        await _in_thread(lambda: state.keep(lambda: scrape().body), settings.query_timeout)

    stack.push_async_callback(keep)
    binding.prepare(
        parse_address(settings.http_listen, field="http_listen", listen=True), flag="--http-listen"
    )
    exporter = await stack.enter_async_context(
        Exporter(
            settings.http_listen,
            scrape,
            HttpLimits(
                head_timeout=settings.http_head_timeout,
                scrape_timeout=settings.http_scrape_timeout,
                send_timeout=settings.http_send_timeout,
                max_connections=settings.http_max_connections,
            ),
        )
    )
    state.announce(exporter.address)
    stack.callback(state.withdraw)
    servicer = MetricsServicer(
        collector,
        read=read,
        flush=keep,
        stopping=health.stopping,
        stream_quiet=settings.stream_quiet,
    )
    otlp = OtlpServicer(received, collector)
    return [
        Mount(SERVICE, partial(metrics_pb2_grpc.add_MetricsServiceServicer_to_server, servicer)),
        Mount(
            otlp_servicer.SERVICE,
            partial(metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server, otlp),
        ),
    ]


async def _in_thread(work: Callable[[], _T], limit: float) -> _T:
    try:
        async with asyncio.timeout(limit):
            return await asyncio.to_thread(work)
    except TimeoutError as error:
        raise DeadlineError(f"reading the metrics took longer than {limit:g} s") from error


def main() -> int:
    """Run the service; return its exit code."""
    return run_service(MetricsSettings, build)


if __name__ == "__main__":
    sys.exit(main())
