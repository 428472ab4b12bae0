"""Repeated loads and unloads: the resources that the loader has afterwards but did not have before.

Its bounded buffers (log lines, changes for watchers) are small here, so that the first cycles fill
them, and any growth after that is a leak.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.tools.running import LoaderUnderTest

from .figures import cpu, heading, load, ms, predict, show, unload

CYCLES = 200
FULL = 1000
WARM_UP = 30
MEMORY_GOAL = 1024**2
"""Bytes that the second half of the cycles may add: less than an allocation arena may grow by chance."""
THREADS = 2
"""Threads that the second half may add: thread pools grow when tasks happen to overlap."""
SAMPLES = 40
"""Cycles over which the largest count is taken: single counts vary with thread pools and tasks that are ending."""
BOUNDS = ("--log-lines", "20", "--watch-history", "20")


@dataclass(frozen=True)
class Resources:
    """The loader's resources at one moment."""

    processes: int
    descriptors: int
    threads: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> Resources:
        """Count the resources of the process and its descendants."""
        process = psutil.Process(pid)
        return cls(
            len(process.children(recursive=True)),
            process.num_fds(),
            process.num_threads(),
            process.memory_info().rss,
        )


async def run(*, full: bool) -> None:
    """Measure and print."""
    count = FULL if full else CYCLES
    with tempfile.TemporaryDirectory() as folder:
        loader = LoaderUnderTest(Path(folder) / "home")
        loader.add_backend("fake")
        loader.add_model("m", "fake")
        await loader.start("--log-level", "error", *BOUNDS)
        try:
            await _cycle(loader, WARM_UP)
            used, began = cpu(loader.service.pid), time.perf_counter()
            first = await _cycle(loader, count // 2)
            second = await _cycle(loader, count - count // 2)
            seconds = time.perf_counter() - began
            used = cpu(loader.service.pid) - used
        finally:
            await loader.close()
    heading(f"cycles: {count} times load, call, unload, after {WARM_UP} to warm up")
    show("cycles a second (a Python backend)", f"{count / seconds:.2f}")
    show("  the loader's processor time a cycle", ms(used / count))
    for name, pooled in (("processes", 0), ("descriptors", 0), ("threads", THREADS)):
        before, after = (
            max(getattr(each, name) for each in half[-SAMPLES:]) for half in (first, second)
        )
        goal = f"at most {pooled} more" if pooled else "no growth"
        show(
            f"{name}, halfway and at the end",
            f"{before}, {after}",
            goal,
            met=after <= before + pooled,
        )
    memory = [
        statistics.median(each.memory for each in part)
        for part in (first[:SAMPLES], first[-SAMPLES:], second[-SAMPLES:])
    ]
    text = ", ".join(f"{each / 1024**2:.1f}" for each in memory)
    show("memory, at first, halfway, at the end", f"{text} MiB")
    grown = memory[2] - memory[1]
    goal = f"at most {MEMORY_GOAL // 1024} KiB"
    show("  second half", f"{grown / 1024:+.0f} KiB", goal, met=grown <= MEMORY_GOAL)


async def _cycle(loader: LoaderUnderTest, count: int) -> list[Resources]:
    """Return the resources after each cycle."""
    found = []
    for _ in range(count):
        await load(loader, "m")
        await predict(loader, "m")
        await unload(loader, "m")
        found.append(Resources.of(loader.service.pid))
    return found
