"""`corral.client` against a plain stub with a known address: asyncio, in this process."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from statistics import median
from typing import Any

import grpc

from corral.backend import backend_pb2, backend_pb2_grpc
from corral.client import aio

from .figures import heading, named, progress, show
from .stage import Stage, model_of, stage
from .traffic import REPETITIONS

WIDTH = 32
GOAL = 0.97
"""The minimum, as a share of the plain stub's calls a second."""
REQUEST = backend_pb2.PredictOptions(Prompt="x" * 1024)

Call = Callable[[Any], Awaitable[Any]]


async def run(*, full: bool) -> None:
    """Measure and print."""
    seconds = 2.0 if full else 0.7
    heading(f"sdk: 1 KiB, {WIDTH} at a time, {REPETITIONS} interleaved repetitions, medians")
    rates: dict[str, list[float]] = defaultdict(list)
    used: dict[str, list[float]] = defaultdict(list)
    async with stage("C++") as it, AsyncExitStack() as stack:
        await it.start_loader()
        calls = await _calls(it, stack)
        for repetition in range(REPETITIONS):
            for name, call in calls.items():
                progress(f"{name} ({repetition + 1}/{REPETITIONS})")
                rate, cpu = await _measure(call, seconds)
                rates[name].append(rate)
                used[name].append(cpu)
    progress("done", end=True)
    for name, found in rates.items():
        figure = f"{median(found):,.0f} calls/s, {median(used[name]) * 1e6:.0f} µs CPU a call"
        show(name, figure)
    for name in (CLIENT, GATEWAY):
        ratio = median(a / b for a, b in zip(rates[name], rates[PLAIN], strict=True))
        goal = (f"at least {GOAL}", ratio >= GOAL) if name == CLIENT else ("", None)
        show(f"  {name} against {PLAIN}", f"{ratio:.2f}", goal[0], met=goal[1])


PLAIN = "a plain stub to the backend"
CLIENT = "corral.client"
GATEWAY = "a plain stub to the gateway"


async def _calls(it: Stage, stack: AsyncExitStack) -> dict[str, Call]:
    name = model_of("C++")
    address, metadata = await it.resolved("C++").find()
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
    plain: Any = backend_pb2_grpc.BackendStub(channel)
    client: Any = await stack.enter_async_context(aio.connect(name, it.loader.service.address))
    if not await client.ready(10):
        raise RuntimeError("corral.client found no direct way")
    return {
        PLAIN: partial(plain.Predict, metadata=metadata),
        CLIENT: client.Predict,
        GATEWAY: partial(it.loader.data.Predict, metadata=named(name)),
    }


async def _measure(call: Call, seconds: float) -> tuple[float, float]:
    """Return calls a second, and this process's processor time a call."""
    count = 0
    began, used = time.perf_counter(), time.process_time()
    end = began + seconds

    async def worker() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await call(REQUEST)
            count += 1

    await asyncio.gather(*(worker() for _ in range(WIDTH)))
    return count / (time.perf_counter() - began), (time.process_time() - used) / count
