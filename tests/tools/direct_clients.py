"""`corral.client` with a loader under test, and the loader's view of its leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from corral import client
from corral.client import aio
from tests.tools.loader_calls import model
from tests.tools.running import LoaderUnderTest, eventually

READY = 20.0
"""Seconds for a model to become ready."""
DIRECT = b"grpc-python/"
"""Start of the blocking client's user agent; calls through the loader carry the loader's."""


def at(running: LoaderUnderTest, name: str = "m", **options: Any) -> client.Model:
    return client.connect(name, running.service.address, **options)


def aio_at(running: LoaderUnderTest, name: str = "m", **options: Any) -> aio.Model:
    return aio.connect(name, running.service.address, **options)


async def leases(running: LoaderUnderTest, name: str = "m") -> int:
    return sum(each.direct_leases for each in (await model(running, name)).instances)


async def has_leases(running: LoaderUnderTest, count: int) -> None:
    async def so_many() -> bool:
        return await leases(running) == count

    await eventually(so_many, what=f"{count} leases")


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


def active(backend: Any) -> int:
    """Return the number of calls running on the lease."""
    lease = backend._keeper.rules.current
    return lease.active if lease is not None else 0
