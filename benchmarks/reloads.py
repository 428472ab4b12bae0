"""Unloads under load: no call of any client may fail, at the gateway or at an endpoint.

A controller unloads the model again and again, shortly after it is loaded; the clients' next calls load it.
*Steadily*: each client makes one call after the other, at 20 calls a second, all clients at once. *Stress*: eight
workers of one client at up to 400 a second. A call has *met* an unload if it was in progress at some moment
between the start of the unload and the end of the reload.
"""

from __future__ import annotations

import asyncio
import bisect
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from corral.loader.v1 import loader_pb2 as pb
from services.common.errors import DeadlineError
from services.common.tasks import wait_until
from tests.tools.running import LoaderUnderTest

from . import native
from .callers import CALLERS, Calling, Failure, Told, caller
from .figures import heading, ms, named, show, spread
from .peers import UnavailableError
from .record import RECORD
from .stage import add_backend

CYCLES, FULL_CYCLES = 60, 500
STRESS_CYCLES, FULL_STRESS_CYCLES = 40, 250
STEADY = Calling("", workers=1, rate=20)
STRESS = Calling("", workers=8, rate=50)
USE = (0.02, 0.12)
"""Seconds for which clients use the model before it is unloaded."""
RELOAD_TIMEOUT = 30.0
VALUE = "reload_failures"
SHOWN = 3
"""The most failures of each kind that are shown."""


@dataclass(frozen=True)
class Route:
    """A route to the model."""

    name: str
    target: str
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass
class Cycles:
    """What the controller did."""

    gaps: list[tuple[float, float]]
    """From the start of each unload until the model was ready again (CLOCK_MONOTONIC)."""
    took: list[float]
    """Seconds of each unload."""
    refused: Counter[str]


async def run(*, full: bool) -> None:
    """Measure, print, and record what failed."""
    cycles = FULL_CYCLES if full else CYCLES
    stress = FULL_STRESS_CYCLES if full else STRESS_CYCLES
    async with _loader() as loader:
        for route in routes(loader):
            names = tuple(CALLERS)
            await _measure(loader, route, "steadily", names, STEADY, cycles)
            for name in names:
                await _measure(loader, route, "stress", (name,), STRESS, stress)


@asynccontextmanager
async def _loader() -> AsyncIterator[LoaderUnderTest]:
    await native.build()
    with tempfile.TemporaryDirectory(prefix="reloads-") as folder:
        loader = LoaderUnderTest(Path(folder) / "home")
        add_backend(loader, "m", [str(native.BACKEND)])
        loader.add_model("m", "m")
        await loader.start("--log-level", "error")
        try:
            yield loader
        finally:
            await loader.close()


def routes(loader: LoaderUnderTest) -> Iterator[Route]:
    """Yield the routes to the model that this loader has."""
    yield Route("gateway", loader.service.address, named("m"))
    sockets = [path for path in loader.home.rglob("m.sock") if path.parent.name == "models"]
    if sockets:
        yield Route("endpoint", f"unix:{sockets[0]}")
    else:
        RECORD.failed("reloads, endpoint", "the loader gives the model no endpoint")


async def _measure(
    loader: LoaderUnderTest,
    route: Route,
    kind: str,
    names: tuple[str, ...],
    calling: Calling,
    count: int,
) -> None:
    calling = replace(calling, target=route.target, metadata=route.metadata)
    told: dict[str, Told] = {}
    async with AsyncExitStack() as stack:
        running = {}
        for name in names:
            try:
                running[name] = await stack.enter_async_context(caller(name, calling))
            except UnavailableError as error:
                RECORD.failed(f"reloads, {name}", error)
        cycles = await _cycle(loader, count)
        for name, each in running.items():
            told[name] = await each.end()
    heading(f"reloads, {kind}, {route.name}: {len(cycles.took)} unloads")
    show("unload: median, max", spread(cycles.took))
    show("  until it was ready again", spread([ended - began for began, ended in cycles.gaps]))
    for code, times in cycles.refused.items():
        print(f"  unload refused {times} times: {code}")
    for name, said in told.items():
        _report(name, said, cycles)
        RECORD.values[VALUE] = RECORD.values.get(VALUE, 0) + len(said.failures)
        if said.failures:
            where = f"reloads, {kind}, {route.name}, {name}"
            RECORD.failed(where, f"{len(said.failures)} of {len(said.calls)} calls failed")


async def _cycle(loader: LoaderUnderTest, count: int) -> Cycles:
    chance = random.Random(1)
    cycles = Cycles([], [], Counter())
    await _reloaded(loader)
    while len(cycles.gaps) < count:
        await asyncio.sleep(chance.uniform(*USE))
        began = time.monotonic()
        try:
            await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"))
        except grpc.aio.AioRpcError as error:
            cycles.refused[f"{error.code().name}: {error.details()}"] += 1
            if cycles.refused.total() > count:
                raise DeadlineError("the model cannot be unloaded") from error
        else:
            cycles.took.append(time.monotonic() - began)
            await _reloaded(loader)
            cycles.gaps.append((began, time.monotonic()))
    return cycles


async def _reloaded(loader: LoaderUnderTest) -> None:
    await wait_until(
        lambda: _ready(loader),
        timeout=RELOAD_TIMEOUT,
        what="the model's reload by its clients",
        interval=0.005,
    )


async def _ready(loader: LoaderUnderTest) -> bool:
    answer = await loader.control.GetModel(pb.GetModelRequest(name="m"))
    return bool(answer.model.state == pb.Model.STATE_READY)


def _report(name: str, told: Told, cycles: Cycles) -> None:
    met = overlapped(cycles.gaps)
    of_these = [ended - began for began, ended in told.calls if met(began, ended)]
    others = [ended - began for began, ended in told.calls if not met(began, ended)]
    show(f"{name}: calls, and those during an unload", f"{len(told.calls)}, {len(of_these)}")
    if of_these and others:
        slowest = f"{ms(statistics.median(of_these))}, {ms(max(of_these))}"
        show("  median and slowest of these; of the others", f"{slowest}; {ms(max(others))}")
    show("  failed", str(len(told.failures)), "0", met=not told.failures)
    for code, some in _by_code(told.failures).items():
        for each in some[:SHOWN]:
            where = "met an unload" if met(each.at, each.at) else "no unload then"
            print(f"    {code} ({where}): {each.text[:300]}")


def _by_code(failures: list[Failure]) -> dict[str, list[Failure]]:
    found: dict[str, list[Failure]] = {}
    for each in failures:
        found.setdefault(each.code, []).append(each)
    return found


def overlapped(gaps: list[tuple[float, float]]) -> Callable[[float, float], bool]:
    """Return a function that checks whether a call (begin, end) was in progress during one of these gaps."""
    ends = [ended for _, ended in gaps]

    def met(began: float, ended: float) -> bool:
        at = bisect.bisect_left(ends, began)
        return at < len(gaps) and gaps[at][0] <= ended

    return met
