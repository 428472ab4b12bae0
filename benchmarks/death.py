"""How soon a backend's death is known: from `kill -9` to NOT_SERVING at who watches the model's health."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from corral.loader.v1 import loader_pb2
from tests.tools.running import LoaderUnderTest

REPETITIONS = 15
PROMISED = 0.1


async def run() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        loader = LoaderUnderTest(Path(folder) / "home")
        loader.add_backend("fake")
        loader.add_model("m", "fake")
        await loader.start("--log-level", "warn")
        try:
            seconds = [await _once(loader) for _ in range(REPETITIONS)]
        finally:
            await loader.close()
    print(f"death: {REPETITIONS} kills of a backend, until the watch of its model's health says so")
    print(
        f"  median {statistics.median(seconds) * 1e3:.1f} ms, longest {max(seconds) * 1e3:.1f} ms;"
        f" promised {PROMISED * 1e3:.0f} ms"
    )


async def _once(loader: LoaderUnderTest) -> float:
    request = loader_pb2.LoadModelRequest(name="m", reset_backoff=True)
    model = (await loader.control.LoadModel(request)).model
    watch = health_pb2_grpc.HealthStub(loader.channel).Watch(
        health_pb2.HealthCheckRequest(service="models/m")
    )
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    began = time.perf_counter()
    os.kill(model.instances[0].pid, signal.SIGKILL)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    seconds = time.perf_counter() - began
    watch.cancel()
    return seconds
