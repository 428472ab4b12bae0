"""Many clients call one unloaded model: whether one process starts, and how much longer they wait than one client.

The same clients' calls to the loaded model show how much of the wait is due to the calls themselves.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from corral.backend import backend_pb2_grpc
from tests.tools.running import LoaderUnderTest

from .figures import PROMPT, count_starts, heading, ms, named, predict, show, starts, timed, unload

CLIENTS = 200
REPETITIONS = 7
LOAD_SECONDS = 0.5


@dataclass
class Result:
    """Seconds until all clients had their answers, and processes started for the crowd."""

    alone: list[float] = field(default_factory=list)
    crowd: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    last_after_first: list[float] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)


async def run(*, full: bool) -> None:
    """Measure and print."""
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        loader = LoaderUnderTest(Path(folder) / "home")
        count_starts(loader.add_backend("fake", load_seconds=LOAD_SECONDS))
        loader.add_model("m", "fake")
        await loader.start("--log-level", "warn")
        try:
            async with AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(_client(loader)) for _ in range(CLIENTS)]
                await asyncio.gather(*(client.channel_ready() for client in clients))
                stubs = [backend_pb2_grpc.BackendStub(client) for client in clients]
                for _ in range(REPETITIONS):
                    await _measure(loader, stubs, result)
        finally:
            await loader.close()
    alone, crowd, warm = map(statistics.median, (result.alone, result.crowd, result.warm))
    heading(
        f"cold: {CLIENTS} clients with a connection each, {REPETITIONS} interleaved repetitions,"
        f" medians; a load takes {LOAD_SECONDS:g} s and the start of a Python backend"
    )
    most = max(result.processes)
    show("processes started for all clients, most", str(most), "1", met=most == 1)
    show("cold, one client", ms(alone))
    show(f"cold, until all {CLIENTS} have their answer", ms(crowd))
    show("  against one client", f"{crowd / alone:.2f}")
    show("  beyond one client", ms(crowd - alone))
    show("  last answer after the first", ms(statistics.median(result.last_after_first)))
    show(f"loaded already, until all {CLIENTS} have their answer", ms(warm))


def _client(loader: LoaderUnderTest) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(loader.service.address, options=options)


async def _measure(loader: LoaderUnderTest, stubs: list[Any], result: Result) -> None:
    result.alone.append(await timed(predict(loader, "m")))
    await unload(loader, "m")
    before = starts(loader.backends / "fake")
    times = await _all(stubs)
    result.processes.append(starts(loader.backends / "fake") - before)
    result.crowd.append(max(times))
    result.last_after_first.append(max(times) - min(times))
    result.warm.append(max(await _all(stubs)))
    await unload(loader, "m")


async def _all(stubs: list[Any]) -> list[float]:
    """Call from all clients at once; return when each had its answer."""
    began = time.perf_counter()

    async def one(stub: Any) -> float:
        await stub.Predict(PROMPT, metadata=named("m"))
        return time.perf_counter() - began

    return await asyncio.gather(*(one(stub) for stub in stubs))
