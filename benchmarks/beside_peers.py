"""Corral and other model servers compared: the same echo of 1 KiB, all running at once, called in turn."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from .clocks import cpu_seconds, memory
from .figures import heading, progress, show
from .goals import OURS
from .paths import BARE, DIRECT, ENDPOINT, GATEWAY
from .peers import PEERS, Running, UnavailableError
from .record import RECORD
from .report import by_path
from .stage import Route, Stage, routes, stage
from .traffic import REPETITIONS, Measurement, repeat, with_request
from .unary import measurement

SIZE = 1024
WIDTHS = (1, 32)
IDLE_SECONDS = 5.0
PATHS = (DIRECT, BARE, GATEWAY, ENDPOINT)


async def run(*, full: bool) -> None:
    """Measure and print."""
    heading(f"peers: an echo of {SIZE} bytes, {REPETITIONS} interleaved repetitions, medians")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        it = await stack.enter_async_context(stage("C++", "Python"))
        await it.start_loader()
        ways = [
            _ours(way)
            for backend in it.backends
            for way in (await routes(it, backend, PATHS)).values()
        ]
        running: dict[str, Running] = {}
        for name, peer in PEERS.items():
            progress(f"starting {peer.title}")
            try:
                running[name] = await stack.enter_async_context(peer.start(payload_size=SIZE))
            except UnavailableError as error:
                RECORD.failed(peer.title, error)
                continue
            ways.append(_peer(name, running[name], folder))
        await _idle(it, running)
        for width in WIDTHS:
            case = measurement("1 KiB", width, (), 2 if full else 1)
            case = Measurement(f"peers-{case.key}", case.title, case.request, case.load)
            rows = await repeat(with_request(case, folder), ways)
            RECORD.traffic += rows
            print(by_path(rows))


def _ours(way: Route) -> Route:
    """Return the route with its backend in its name: a run with peers has one table for all routes."""
    name = f"{way.name}, {way.backend}"
    return Route(name, OURS, way.find, way.between, way.behind)


def _peer(name: str, peer: Running, folder: Path) -> Route:
    request = folder / name
    request.write_bytes(peer.request)

    async def find() -> tuple[str, tuple[tuple[str, str], ...]]:
        return peer.target, peer.metadata

    instead = {"method": peer.method, "request": request}
    return Route(name, OURS, find, behind=peer.pids, instead=instead)


async def _idle(it: Stage, running: dict[str, Running]) -> None:
    """Show what each server uses while it gets no calls."""
    groups = {"loader with a C++ and a Python backend": it.all_pids}
    groups |= {PEERS[name].title: peer.pids for name, peer in running.items()}
    pids = {name: group() for name, group in groups.items()}
    before = {name: cpu_seconds(own) for name, own in pids.items()}
    progress("idling")
    await asyncio.sleep(IDLE_SECONDS)
    for name, own in pids.items():
        share = (cpu_seconds(own) - before[name]) / IDLE_SECONDS
        text = f"{memory(own) / 1e6:.0f} MB PSS, {len(own)} processes, {share:.1%} CPU"
        show(f"idle: {name}", text)
    for name, peer in running.items():
        show(f"start to first answer: {PEERS[name].title}", f"{peer.ready_seconds:.1f} s")
