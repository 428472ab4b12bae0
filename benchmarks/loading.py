"""Loading and unloading, against the time that the backend alone takes until it listens."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from statistics import median

from .figures import heading, load, ms, predict, progress, show, timed, unload
from .stage import BACKENDS, Stage, model_of, stage

REPETITIONS, FULL_REPETITIONS = 9, 30
GOAL = 0.05
"""Seconds that the loader may add to a backend's own start."""


async def run(*, full: bool) -> None:
    """Measure and print."""
    repetitions = FULL_REPETITIONS if full else REPETITIONS
    heading(f"loading: {repetitions} interleaved repetitions, medians")
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    async with stage(*BACKENDS) as it:
        await it.start_loader()
        for backend in BACKENDS:
            await unload(it.loader, model_of(backend))
        for repetition in range(repetitions):
            progress(f"{repetition + 1}/{repetitions}")
            for backend in BACKENDS:
                for what, seconds in (await _measure(it, backend)).items():
                    times[backend, what].append(seconds)
    progress("done", end=True)
    for backend in BACKENDS:
        show(f"{backend} backend", "")
        own = {what: values for (which, what), values in times.items() if which == backend}
        for what, values in own.items():
            show(f"  {what}", f"{ms(median(values))}, max {ms(max(values))}")
        for what in (LOAD, COLD):
            added = median(a - b for a, b in zip(own[what], own[ALONE], strict=True))
            show(f"  added: {what}", ms(added), ms(GOAL), met=added <= GOAL)


ALONE = "start of the program to its ready line, without a loader"
LOAD = "LoadModel"
COLD = "first call of a model that is not loaded"
UNLOAD = "UnloadModel"


async def _measure(it: Stage, backend: str) -> dict[str, float]:
    model = model_of(backend)
    began = time.perf_counter()
    process = await it.start(
        *BACKENDS[backend], "--addr", f"unix:{it.home}/alone.sock", session=True
    )
    found = {ALONE: time.perf_counter() - began}
    process.terminate()
    await asyncio.wait_for(process.wait(), 10)
    found[LOAD] = await timed(load(it.loader, model))
    found[UNLOAD] = await timed(unload(it.loader, model))
    found[COLD] = await timed(predict(it.loader, model))
    await unload(it.loader, model)
    return found
