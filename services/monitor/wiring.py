"""How the monitor is put together from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

from corral.monitor.v1 import monitor_pb2_grpc
from services.common.rpc.channels import open_channel
from services.common.rpc.health import HealthServicer
from services.common.rpc.mounts import AnyMount, Mount
from services.monitor.rpc.loader_client import LoaderClient
from services.monitor.rpc.servicer import SERVICE, MonitorServicer

from .config import MonitorSettings
from .sampler import Sampler
from .status import Statuses


async def build(
    settings: MonitorSettings, stack: AsyncExitStack, health: HealthServicer
) -> Sequence[AnyMount]:
    """Create the client of the loader and the sampler, and return the service to mount."""
    channel = await stack.enter_async_context(
        open_channel(settings.loader, max_message_size=settings.max_message_size)
    )
    loader = LoaderClient(
        channel,
        settings.loader,
        loader_timeout=settings.loader_timeout,
        status_timeout=settings.status_timeout,
        unload_timeout=settings.unload_timeout,
    )
    sampler = Sampler(
        timeout=settings.sample_timeout,
        interval=settings.sample_interval,
        start_time_tolerance=settings.start_time_tolerance,
        remembered=settings.sampled_trees,
    )
    stack.callback(sampler.close)
    servicer = MonitorServicer(Statuses(loader, sampler))
    return [
        Mount(
            SERVICE,
            lambda server: monitor_pb2_grpc.add_MonitorServiceServicer_to_server(servicer, server),
        )
    ]
