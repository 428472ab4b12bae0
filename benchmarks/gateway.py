"""What the gateway costs: the same calls straight to a backend and through the loader, in turn.

The backend is the scripted one of the tests (Python, grpc.aio), so the ratio is that of a Python backend;
the loader's own processor time a call, exact from the kernel, is the figure that travels.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil

from corral.backend import backend_pb2, backend_pb2_grpc
from corral.loader.v1 import loader_pb2
from tests.tools.processes import free_port
from tests.tools.running import LoaderUnderTest

REPETITIONS = 5
CALLS = 1500
CONCURRENCY = 32
TOKENS = 3000
MODEL = (("corral-model", "m"),)
UNARY = backend_pb2.PredictOptions(Prompt="hello")
STREAM = backend_pb2.PredictOptions(Tokens=TOKENS)


@dataclass
class Result:
    """One measurement: operations a second, median latency (ms), loader's CPU (us) an operation."""

    rate: float
    latency: float
    cpu: float


async def run(*, full: bool) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        loader = LoaderUnderTest(Path(folder) / "home")
        loader.add_backend("fake", token_seconds=0)
        loader.add_model("m", "fake")
        await loader.start("--log-level", "warn")
        try:
            await _compare(loader)
        finally:
            await loader.close()


async def _compare(loader: LoaderUnderTest) -> None:
    model = (await loader.control.LoadModel(loader_pb2.LoadModelRequest(name="m"))).model
    # The instance's token is the loader's secret; a second backend without one is as good.
    direct_process, address = await _second_backend(loader)
    process = psutil.Process(loader.service.pid)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            direct: Any = backend_pb2_grpc.BackendStub(channel)
            print(f"gateway: {REPETITIONS} interleaved repetitions, medians ({model.backend})")
            print(
                f"{'':24}{'direct':>12}{'gateway':>12}{'ratio':>8}{'added p50':>12}{'CPU/op':>10}"
            )
            for name, measure in MEASUREMENTS.items():
                pairs = []
                for _ in range(REPETITIONS):
                    straight = await _timed(measure(direct, ()), process)
                    through = await _timed(measure(loader.data, MODEL), process)
                    pairs.append((straight, through))
                _report(name, pairs)
    finally:
        direct_process.kill()
        await direct_process.wait()


async def _second_backend(loader: LoaderUnderTest) -> tuple[asyncio.subprocess.Process, str]:
    address = f"127.0.0.1:{free_port()}"
    folder = loader.backends / "fake"
    process = await asyncio.create_subprocess_exec(folder / "run.sh", "--addr", address, cwd=folder)
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 20)
    return process, address


async def _timed(measure: Awaitable[tuple[int, list[float]]], process: psutil.Process) -> Result:
    cpu = sum(process.cpu_times()[:2])
    started = time.perf_counter()
    count, latencies = await measure
    seconds = time.perf_counter() - started
    used = sum(process.cpu_times()[:2]) - cpu
    return Result(count / seconds, statistics.median(latencies) * 1e3, used / count * 1e6)


async def _unary(stub: Any, metadata: Any, *, width: int, calls: int) -> tuple[int, list[float]]:
    latencies: list[float] = []

    async def worker() -> None:
        for _ in range(calls // width):
            started = time.perf_counter()
            await stub.Predict(UNARY, metadata=metadata)
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(worker() for _ in range(width)))
    return len(latencies), latencies


async def _stream(stub: Any, metadata: Any) -> tuple[int, list[float]]:
    started = time.perf_counter()
    count = 0
    async for _ in stub.PredictStream(STREAM, metadata=metadata):
        count += 1
    return count, [time.perf_counter() - started]


Measure = Callable[[Any, Any], Awaitable[tuple[int, list[float]]]]
MEASUREMENTS: dict[str, Measure] = {
    "unary, 1 at a time": partial(_unary, width=1, calls=CALLS // 3),
    f"unary, {CONCURRENCY} at a time": partial(_unary, width=CONCURRENCY, calls=CALLS),
    "stream, messages": _stream,
}


def _report(name: str, pairs: list[tuple[Result, Result]]) -> None:
    median: Callable[[Callable[[tuple[Result, Result]], float]], float] = lambda pick: (
        statistics.median(map(pick, pairs))
    )
    print(
        f"{name:24}"
        f"{median(lambda p: p[0].rate):10.0f}/s"
        f"{median(lambda p: p[1].rate):10.0f}/s"
        f"{median(lambda p: p[1].rate / p[0].rate):8.2f}"
        f"{median(lambda p: p[1].latency - p[0].latency):9.2f} ms"
        f"{median(lambda p: p[1].cpu):7.0f} us"
    )
