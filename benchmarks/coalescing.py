"""Joining the messages of a stream in a proxy: what it saves, and what it costs in delay.

Compares the bare proxy with variants of it. The gateway does not join messages; these figures show why.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

from corral.backend import backend_pb2
from tests.tools.processes import free_port

from .figures import heading, ms, progress, show
from .generator import Load, Sample
from .paths import BARE
from .record import RECORD
from .stage import Route, routes, stage
from .traffic import FAILURES, REPETITIONS, STREAM

WINDOWS = {"joining what piled up": 0.0, "a window of 5 ms": 0.005, "a window of 20 ms": 0.02}
SIZE = 100
"""Bytes of a message: large against its framing, so that the size shows how many were joined."""
STREAMS = 64
RATE = 50
"""Messages a second of each paced stream, like a fast language model."""
CASES = {
    f"{STREAMS} streams of {RATE} messages/s": ({"rate": str(RATE)}, 0),
    f"{STREAMS} streams, saturated": ({}, 200),
}


async def run(*, full: bool) -> None:
    """Measure and print."""
    seconds = 2.0 if full else 0.6
    heading(f"coalescing: {REPETITIONS} interleaved repetitions, medians, C++ backend")
    samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        async with stage("C++") as it:
            ways = dict(await routes(it, "C++", (BARE,)))
            direct = ways.pop("direct")
            for name, window in WINDOWS.items():
                listen = f"127.0.0.1:{free_port()}"
                program = ("window_proxy.py", listen, "--window", str(window))
                ways[name] = await it.proxy(direct, name, *program)
            loads = {case: _load(Path(folder), case, seconds) for case in CASES}
            for repetition in range(REPETITIONS):
                for case, load in loads.items():
                    for name, way in ways.items():
                        progress(f"{case}, {name} ({repetition + 1}/{REPETITIONS})")
                        if sample := await _measured(way, load):
                            samples[case, name].append(sample)
    progress("done", end=True)
    for case in CASES:
        show(case, "")
        for name in ways:
            if found := samples[case, name]:
                _report(name, found)


def _load(folder: Path, case: str, seconds: float) -> Load:
    metadata, messages = CASES[case]
    metadata = {**metadata, "size": str(SIZE)}
    request = backend_pb2.PredictOptions(Tokens=messages, Metadata=metadata)
    file = folder / str(messages)
    file.write_bytes(request.SerializeToString())
    paced = 0 if messages else RATE
    drain = 20.0 if messages else 0.0
    return Load(STREAM, file, "stream", STREAMS, seconds, paced=paced, drain=drain)


async def _measured(way: Route, load: Load) -> Sample | None:
    try:
        return await way.measure(load)
    except FAILURES as error:
        RECORD.failed(way.name, error)
        return None


def _report(name: str, samples: list[Sample]) -> None:
    joined = median(max(sample.size / SIZE, 1) for sample in samples)
    cpu = median(sample.cpu / max(sample.size / SIZE, 1) for sample in samples)
    client = median(sample.client_cpu / max(sample.size / SIZE, 1) for sample in samples)
    delay = median(sample.p50 for sample in samples) / 1e6
    text = f"{cpu:.0f} µs a message, client {client:.0f} µs, {joined:.1f} in one"
    show(f"  {name}", text + (f", delay {ms(delay)}" if delay else ""))
