"""What the loader adds to a backend's own start: from the call to ready, against the backend alone."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from corral.loader.v1 import loader_pb2
from tests.tools.processes import free_port
from tests.tools.running import LoaderUnderTest

REPETITIONS = 9
STEP = 0.001


async def run() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        loader = LoaderUnderTest(Path(folder) / "home")
        loader.add_backend("fake")
        loader.add_model("m", "fake")
        await loader.start("--log-level", "warn")
        pairs = []
        try:
            for _ in range(REPETITIONS):
                alone = await _alone(loader)
                started = time.perf_counter()
                await loader.control.LoadModel(loader_pb2.LoadModelRequest(name="m"))
                through = time.perf_counter() - started
                await loader.control.UnloadModel(loader_pb2.UnloadModelRequest(name="m"))
                pairs.append((alone, through))
        finally:
            await loader.close()
    alone = statistics.median(pair[0] for pair in pairs)
    through = statistics.median(pair[1] for pair in pairs)
    added = statistics.median(pair[1] - pair[0] for pair in pairs)
    print(f"startup: {REPETITIONS} pairs, medians (a Python backend, until its socket is open)")
    print(f"  alone {alone * 1e3:.0f} ms, loaded through the loader {through * 1e3:.0f} ms")
    print(f"  added {added * 1e3:.0f} ms, ratio {through / alone:.2f}")


async def _alone(loader: LoaderUnderTest) -> float:
    port = free_port()
    folder = loader.backends / "fake"
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        folder / "run.sh", "--addr", f"127.0.0.1:{port}", cwd=folder
    )
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(STEP)
            continue
        seconds = time.perf_counter() - started
        writer.close()
        process.kill()
        await process.wait()
        return seconds
