"""From the death of a backend to NOT_SERVING for a client that watches its health."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.tools.running import LoaderUnderTest

from .figures import heading, load, ms, show

GOAL = 0.1
"""Seconds."""
REPETITIONS = 20
BACKENDS = {
    "the program itself": True,
    "under a shell that stays": False,
}


async def run(*, full: bool) -> None:
    """Measure and print."""
    times: dict[str, list[float]] = {name: [] for name in BACKENDS}
    with tempfile.TemporaryDirectory() as folder:
        loader = LoaderUnderTest(Path(folder) / "home")
        for number, exec_ in enumerate(BACKENDS.values()):
            loader.add_backend(f"fake{number}", exec_=exec_)
            loader.add_model(f"m{number}", f"fake{number}")
        await loader.start("--log-level", "error", "--stable-time", "1ms")
        try:
            for _ in range(REPETITIONS):
                for number, name in enumerate(BACKENDS):
                    times[name].append(await _kill(loader, f"m{number}"))
        finally:
            await loader.close()
    heading(f"death: kill -9 until Watch of grpc.health.v1 says NOT_SERVING, {REPETITIONS} each")
    for name, found in times.items():
        show(f"{name}, median", ms(statistics.median(found)))
        show("  max", ms(max(found)), ms(GOAL), met=max(found) <= GOAL)


async def _kill(loader: LoaderUnderTest, model: str) -> float:
    pid = (await load(loader, model)).instances[0].pid
    # Under a shell the child is the backend; the shell ends when the child does.
    serving = next(iter(psutil.Process(pid).children()), psutil.Process(pid)).pid
    health = health_pb2_grpc.HealthStub(loader.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=f"models/{model}"))
    while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
        pass
    began = time.perf_counter()
    os.kill(serving, signal.SIGKILL)
    while True:
        answer = await watch.read()
        assert answer is not grpc.aio.EOF
        if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
            break
    seconds = time.perf_counter() - began
    watch.cancel()
    return seconds
