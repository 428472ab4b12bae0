"""The memory of idle streams: a thousand open streams on each path, in processes started for them."""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median

from corral.backend import backend_pb2

from .clocks import memory
from .figures import heading, progress, show
from .generator import Load, open_streams
from .paths import BARE, DIRECT, ENDPOINT, GATEWAY, SPLICE
from .record import RECORD
from .stage import Route, routes, stage
from .traffic import FAILURES, PREDICT, REPETITIONS, STREAM

STREAMS = 1000
SETTLE = 0.5
"""Seconds from the last stream's first message to the measurement."""
PATHS = (BARE, GATEWAY, SPLICE, ENDPOINT)
GOAL = 1.15
"""The maximum, as a multiple of a stream's memory in the bare proxy."""


async def run(*, full: bool) -> None:
    """Measure and print."""
    heading(f"memory: PSS of {STREAMS} idle streams, {REPETITIONS} fresh starts, medians")
    before: dict[str, list[float]] = defaultdict(list)
    grown: dict[str, dict[int, float]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = backend_pb2.PredictOptions(Prompt="x" * 1024)
        (folder / "call").write_bytes(request.SerializeToString())
        # The first message is sent at once, the second not during the measurement.
        request = backend_pb2.PredictOptions(Metadata={"rate": "0.0001"})
        (folder / "stream").write_bytes(request.SerializeToString())
        for repetition in range(REPETITIONS):
            progress(f"{repetition + 1}/{REPETITIONS}")
            async with stage("C++") as it:
                await it.start_loader()
                for path, way in (await routes(it, "C++", (DIRECT, *PATHS))).items():
                    try:
                        start, end = await _measure(way, folder)
                    except FAILURES as error:
                        RECORD.failed(f"C++ backend, {path}", error)
                        continue
                    before[path].append(start)
                    grown[path][repetition] = end - start
    progress("done", end=True)
    for path, values in grown.items():
        each = median(values.values()) / STREAMS / 1024
        without = median(before[path]) / 2**20
        label = "the backend itself" if path == DIRECT else path
        show(label, f"{each:.1f} KiB a stream, {without:.0f} MiB without")
    if both := grown[GATEWAY].keys() & grown[BARE].keys():
        ratio = median(grown[GATEWAY][n] / grown[BARE][n] for n in both)
        RECORD.values["idle_stream_ratio"] = ratio
        show("a stream through the gateway against the bare proxy", f"{ratio:.2f}",
             f"{GOAL:g}", met=ratio <= GOAL)  # fmt: skip


async def _measure(way: Route, folder: Path) -> tuple[int, int]:
    """Return the memory before and with the streams, after a few calls that warm up what all calls use."""
    calls = Load(PREDICT, folder / "call", concurrency=8, seconds=1)
    await way.measure(calls)
    pids = way.between() or way.behind()
    start = memory(pids)
    target, metadata = await way.find()
    streams = replace(calls, method=STREAM, request=folder / "stream", mode="stream")
    streams = replace(streams, concurrency=STREAMS, seconds=3600, paced=1, drain=0)
    async with open_streams(streams, target, metadata):
        await asyncio.sleep(SETTLE)
        return start, memory(pids)
