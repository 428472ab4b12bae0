"""A soak test: clients are slow, cancel, are killed or vanish, while models are unloaded and backends crash.

At the end all clients stop, and the loader must have what it had at the beginning: no calls or leases, and
the same number of descriptors and threads; and its memory must not have grown in the second half.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from benchmarks import native
from benchmarks.figures import heading, named, progress, show, unload
from benchmarks.record import RECORD
from benchmarks.stage import BACKENDS, add_backend, model_of
from corral.loader.v1 import loader_pb2 as pb
from services.common.errors import DeadlineError
from services.common.tasks import wait_until
from tests.tools.processes import processes_in
from tests.tools.running import LoaderUnderTest

from .clients import FATES, Story, Trouble, Way, come_and_go, live
from .cuts import Cuts
from .samples import Sample, sample, slope

MINUTES = 10.0
EVERY = 2.0
"""Seconds between two samples."""
LET_GO_TIMEOUT = 15.0
WARM_UP = 6.0
GROWTH = 2 * 1024**2
"""Bytes that the second half may add: less than one message of a client that sends large messages."""
THREADS = (os.cpu_count() or 1) + 4
"""The maximum size of asyncio's thread pool, which grows when tasks happen to overlap."""
MODELS = tuple(model_of(backend) for backend in BACKENDS)
SETTINGS = (
    *("--log-level", "error", "--log-lines", "20", "--watch-history", "20"),
    # Streams that go on are cut or refused soon, and a backend that crashes is not in a crash loop.
    *("--drain-timeout", "2s", "--stable-time", "1ms"),
)
VALUE = "soak_failures"
SHOWN = 5
SERIES = 20
"""The number of memory figures that are shown."""


@dataclass
class Soak:
    """The result of a soak test."""

    story: Story
    cuts: Cuts
    before: Sample
    during: list[Sample]
    after: Sample
    let_go: float
    """Seconds from the end of the last client until the loader had no calls; -1 for never."""
    left: int
    """Backends still running after everything was unloaded."""


async def run(*, full: bool, minutes: float = MINUTES) -> None:
    """Run the soak test, print, and record what failed."""
    heading(f"soak: {minutes:g} minutes")
    async with _loader() as loader:
        ways = await _ways(loader)
        print(f"  ways: {', '.join(way.name for way in ways)}")
        soak = await _soak(loader, ways, minutes * 60)
    _report(soak)


@asynccontextmanager
async def _loader() -> AsyncIterator[LoaderUnderTest]:
    await native.build()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        loader = LoaderUnderTest(Path(folder) / "home")
        for backend, command in BACKENDS.items():
            add_backend(loader, model_of(backend), command)
            loader.add_model(model_of(backend), model_of(backend))
        await loader.start(*SETTINGS)
        try:
            yield loader
        finally:
            await loader.close()


async def _ways(loader: LoaderUnderTest) -> list[Way]:
    """Return the routes that this loader has to its models."""
    found = []
    for model in MODELS:
        address = loader.service.address
        found.append(Way(f"gateway {model}", model, address, named(model)))
        sockets = [
            path for path in loader.home.rglob(f"{model}.sock") if path.parent.name == "models"
        ]
        found += [Way(f"endpoint {model}", model, f"unix:{path}") for path in sockets]
        if await _resolves(loader, model):
            found.append(Way(f"ResolveModel {model}", model, address, direct=True))
    return found


async def _resolves(loader: LoaderUnderTest, model: str) -> bool:
    request = pb.ResolveModelRequest(name=model, lease_duration=Duration(seconds=1))
    try:
        await loader.control.ResolveModel(request)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        return False
    return True


async def _soak(loader: LoaderUnderTest, ways: list[Way], seconds: float) -> Soak:
    before = await _warm_up(loader, ways)
    story, cuts, during = Story(), Cuts(loader, MODELS), list[Sample]()
    working = [asyncio.create_task(cuts.go_on())]
    working += [
        asyncio.create_task(come_and_go(way, story, number)) for number, way in enumerate(ways)
    ]
    end = time.monotonic() + seconds
    try:
        while (left := end - time.monotonic()) > 0:
            await asyncio.wait(working, timeout=min(EVERY, left), return_when="FIRST_COMPLETED")
            for task in working:
                if task.done():
                    task.result()
            during.append(await sample(loader))
            progress(f"{left:.0f} s left; {story.calls.total()} calls, {during[-1]}")
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    let_go = await _let_go(loader)
    return Soak(story, cuts, before, during, await sample(loader), let_go, _backends_left(loader))


async def _warm_up(loader: LoaderUnderTest, ways: list[Way]) -> Sample:
    """Do once what the test does later, to fill pools and caches; return the loader's resources then."""
    chance = random.Random(0)
    for fate in FATES[:2]:
        await asyncio.gather(
            *(live(way, Story(), chance.randrange(100), fate, WARM_UP / 2, chance) for way in ways)
        )
    await _let_go(loader)
    return await sample(loader)


async def _let_go(loader: LoaderUnderTest) -> float:
    """Wait until the loader has no calls, and unload everything; return the seconds of the wait."""
    began = time.monotonic()

    async def free() -> bool:
        now = await sample(loader)
        return not now.calls and not now.leases

    try:
        await wait_until(free, timeout=LET_GO_TIMEOUT, what="the end of all calls", interval=0.1)
        waited = time.monotonic() - began
    except DeadlineError:
        waited = -1.0
    for model in MODELS:
        await unload(loader, model)
    return waited


def _backends_left(loader: LoaderUnderTest) -> int:
    return len(processes_in(loader.backends))


def _report(soak: Soak) -> None:
    story, cuts = soak.story, soak.cuts
    show("calls", str(story.calls.total()))
    print(f"    {_words(story.calls)}")
    show("clients", str(story.fates.total()))
    print(f"    {_words(story.fates)}")
    print(f"    meanwhile: {_words(cuts.counts)}")
    told = Counter(f"{cuts.explain(each)}, {each.kind}" for each in story.troubles)
    print(f"    told of what was done to them: {_words(told)}")
    unexplained = [each for each in story.troubles if not cuts.explain(each)]
    _verdict("calls that failed without a cause of their own", len(unexplained), 0)
    for way, some in _by_way(unexplained).items():
        for each in some[:SHOWN]:
            took = f"{each.end - each.at:.1f} s"
            print(f"    {way}: {each.kind}, {took}: {each.code} {each.reason}: {each.text[:300]}")
            print(f"      done to the model then: {cuts.beside(each)}")
    _verdict("clients that failed themselves", len(story.faults), 0)
    for fault in story.faults[:SHOWN]:
        print(f"    {fault}")
    _verdict("unloads refused other than as busy", len(cuts.refused), 0)
    for text in cuts.refused[:SHOWN]:
        print(f"    {text}")
    _verdict("calls at the end", soak.after.calls, 0)
    _verdict("leases at the end", soak.after.leases, 0)
    if soak.let_go >= 0:
        show("  seconds until the last was released", f"{soak.let_go:.1f}")
    _verdict("backends left after everything was unloaded", soak.left, 0)
    _verdict("descriptors at the end", soak.after.descriptors, soak.before.descriptors)
    _verdict("threads at the end", soak.after.threads, soak.before.threads + THREADS)
    for name in ("descriptors", "threads", "calls"):
        show(f"  most {name} meanwhile", str(max(getattr(each, name) for each in soak.during)))
    _memory(soak)


def _memory(soak: Soak) -> None:
    every = max(len(soak.during) // SERIES, 1)
    print(
        f"    own memory, MiB: {' '.join(f'{each.own / 2**20:.0f}' for each in soak.during[::every])}"
    )
    for name, label in (("own", "own memory (USS)"), ("pss", "memory (PSS)")):
        before, after = getattr(soak.before, name), getattr(soak.after, name)
        show(f"{label}: before, after", f"{_mib(before)}, {_mib(after)}")
    # Not PSS, which also changes when other processes that share its pages start and end.
    points = [(each.at, float(each.own)) for each in soak.during[len(soak.during) // 2 :]]
    parts = points[: len(points) // 2], points[len(points) // 2 :]
    medians = [_mib(statistics.median(value for _, value in part)) for part in parts]
    show("  medians of the last two quarters (USS)", ", ".join(medians))
    seconds = points[-1][0] - points[0][0]
    grown, surely = (round(each * seconds / 1024) for each in slope(points))
    show("  growth in the second half, estimate, KiB", f"{grown:+}")
    _verdict("    at the least, with 95 % confidence, KiB", surely, GROWTH // 1024)


def _verdict(label: str, found: int, most: int) -> None:
    met = found <= most
    show(label, str(found), f"at most {most}" if most else "0", met=met)
    RECORD.values[VALUE] = RECORD.values.get(VALUE, 0) + (not met)
    if not met:
        RECORD.failed("soak", f"{label.strip()}: {found}, not {most} at most")


def _by_way(troubles: list[Trouble]) -> dict[str, list[Trouble]]:
    found: dict[str, list[Trouble]] = {}
    for each in troubles:
        found.setdefault(each.way.name, []).append(each)
    return found


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _mib(size: float) -> str:
    return f"{size / 1024**2:.1f} MiB"
