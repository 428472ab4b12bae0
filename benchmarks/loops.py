"""The loader's event loops compared, and a port shared by two processes, to choose between them.

Two loaders that differ only in their event loop, each called at its gateway and at its endpoint; and one
bare proxy against two that share a port, with eight connections for the kernel to distribute.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median

from tests.tools.processes import free_port

from .clocks import tree
from .figures import heading, progress, show
from .generator import Load, Sample
from .paths import BARE, ENDPOINT, GATEWAY
from .record import RECORD
from .stage import FOLDER, PYTHON, Route, Stage, routes, stage
from .streams import paced, saturated
from .traffic import FAILURES, REPETITIONS, with_request
from .unary import measurement

LOOPS = ("uvloop", "asyncio")
ONE, TWO = f"{BARE}, one process", f"{BARE}, two processes"
CONNECTIONS = 8


async def run(*, full: bool) -> None:
    """Measure and print."""
    seconds = 1.0 if full else 0.5
    heading(f"event loops and processes: {REPETITIONS} interleaved repetitions, C++ backend")
    samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        chosen = (
            measurement("1 KiB", 1, (), seconds),
            measurement("1 KiB", 32, (), seconds),
            saturated(64, (), seconds),
            paced(64, (), seconds),
        )
        loads = {each.title: with_request(each, Path(folder)).load for each in chosen}
        async with stage("C++") as first, stage("C++") as second:
            ways: dict[str, Route] = {}
            for loop, it in zip(LOOPS, (first, second), strict=True):
                await it.start_loader("--event-loop", loop)
                ways[f"{GATEWAY}, {loop}"] = it.gateway("C++")
                ways[f"{ENDPOINT}, {loop}"] = it.endpoint("C++")
            ways |= await _proxies(first)
            for repetition in range(REPETITIONS):
                for case, load in loads.items():
                    for name, way in ways.items():
                        progress(f"{case}, {name} ({repetition + 1}/{REPETITIONS})")
                        if sample := await _measured(way, _for(name, load)):
                            samples[case, name].append(sample)
    progress("done", end=True)
    for case in loads:
        show(case, "")
        for name in ways:
            if found := samples[case, name]:
                _report(name, found)


async def _proxies(it: Stage) -> dict[str, Route]:
    found = await routes(it, "C++", (BARE,))
    target, metadata = await found["direct"].find()
    listen = f"127.0.0.1:{free_port()}"
    program = (*PYTHON, str(FOLDER / "floor_proxy.py"), "--listen", listen, "--share-port")
    pids = [(await it.start(*program, "--backend", target)).pid for _ in range(2)]

    async def find() -> tuple[str, tuple[tuple[str, str], ...]]:
        return listen, metadata

    two = Route(TWO, "C++", find, lambda: [pid for each in pids for pid in tree(each)])
    return {ONE: found[BARE], TWO: two}


def _for(name: str, load: Load) -> Load:
    return replace(load, connections=CONNECTIONS) if name in (ONE, TWO) else load


async def _measured(way: Route, load: Load) -> Sample | None:
    try:
        return await way.measure(load)
    except FAILURES as error:
        RECORD.failed(way.name, error)
        return None


def _report(name: str, samples: list[Sample]) -> None:
    rate = median(sample.rate for sample in samples)
    cpu = median(sample.cpu for sample in samples)
    text = f"{rate:,.0f}/s, {cpu:.1f} µs"
    if p50 := median(sample.p50 for sample in samples):
        text += f", p50 {p50 / 1e3:.2f} ms, p99 {median(s.p99 for s in samples) / 1e3:.2f} ms"
    show(f"  {name}", text)
