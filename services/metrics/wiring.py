"""How the metrics service is put together from its settings."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc

from corral.metrics.v1 import metrics_pb2_grpc
from services.common.addresses import parse_address
from services.common.process import listen_address
from services.common.rpc.channels import FOREIGN_KEEPALIVE, open_channel
from services.common.rpc.health import HealthServicer
from services.common.rpc.mounts import AnyMount, Mount
from services.metrics.rpc import otlp_servicer
from services.metrics.rpc.otlp_client import OtlpClient
from services.metrics.rpc.otlp_servicer import OtlpServicer
from services.metrics.rpc.servicer import SERVICE, MetricsServicer
from services.metrics.scrape.exporter import Exporter, HttpLimits
from services.metrics.values.collector import Collector
from services.metrics.values.instruments import BOUNDS, KINDS
from services.metrics.values.otlp_store import OtlpStore

from .config import MetricsSettings
from .forwarding import Forwarding
from .readout import Readout
from .state import StateFolder


async def build(
    settings: MetricsSettings, stack: AsyncExitStack, health: HealthServicer
) -> Sequence[AnyMount]:
    """Create the components, and return the services to mount.

    At a stop, calls end first, then scrapes; then the last values are written and pushed, and the
    collector closes.
    """
    instance = uuid.uuid4()
    collector = Collector(
        max_label_values=settings.max_label_values,
        max_series=settings.max_series,
        max_label_length=settings.max_label_length,
    )
    stack.callback(collector.close)
    store = OtlpStore(
        own=KINDS,
        own_bounds=BOUNDS,
        max_series=settings.max_otlp_series,
        max_label_length=settings.max_label_length,
        stale_after=settings.otlp_stale_after,
    )
    readout = Readout(collector.families, store.families, limit=settings.query_timeout)
    state = StateFolder(settings.state_path / "metrics")
    forwarding = await _forwarding(settings, stack, readout, instance)

    async def keep() -> None:
        await readout.on_thread(lambda: state.keep(lambda: readout.page().body))

    async def flush() -> None:
        await keep()
        if forwarding is not None:
            await forwarding.flush()

    stack.push_async_callback(keep)
    exporter = await stack.enter_async_context(_exporter(settings, readout))
    state.announce(exporter.address)
    stack.callback(state.withdraw)
    servicer = MetricsServicer(
        collector,
        read=readout.read,
        flush=flush,
        stopping=health.stopping,
        stream_quiet=settings.stream_quiet,
    )
    otlp = OtlpServicer(store, collector, instance=instance)
    return [
        Mount(SERVICE, partial(metrics_pb2_grpc.add_MetricsServiceServicer_to_server, servicer)),
        Mount(
            otlp_servicer.SERVICE,
            partial(metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server, otlp),
        ),
    ]


def _exporter(settings: MetricsSettings, readout: Readout) -> Exporter:
    address = parse_address(settings.http_listen, field="http_listen", listen=True)
    listen_address.prepare(address, flag="--http-listen")
    limits = HttpLimits(
        head_timeout=settings.http_head_timeout,
        scrape_timeout=settings.http_scrape_timeout,
        send_timeout=settings.http_send_timeout,
        close_timeout=settings.http_close_timeout,
        max_connections=settings.http_max_connections,
    )
    return Exporter(address, readout.page, limits)


async def _forwarding(
    settings: MetricsSettings, stack: AsyncExitStack, readout: Readout, instance: uuid.UUID
) -> Forwarding | None:
    if settings.otlp_endpoint is None:
        return None
    channel = await stack.enter_async_context(
        open_channel(
            settings.otlp_endpoint,
            max_message_size=settings.max_message_size,
            extra=FOREIGN_KEEPALIVE,
        )
    )
    client = OtlpClient(
        channel,
        settings.otlp_endpoint,
        push_timeout=settings.otlp_timeout,
        instance=instance,
    )

    async def push() -> None:
        await client.push(await readout.read())

    return await stack.enter_async_context(Forwarding(push, interval=settings.otlp_interval))
