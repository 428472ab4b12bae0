"""What the benchmarks share: figures and their goals, samples, and a process's resources."""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import psutil

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2 as pb
from tests.tools.running import LoaderUnderTest

from .record import RECORD, Line

PROMPT = backend_pb2.PredictOptions(Prompt="hello")
LABEL = 52


def machine() -> str:
    """Describe the machine."""
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} processors, load {load:.1f}, {platform.system()} {platform.release()},"
        f" Python {platform.python_version()}"
    )


def heading(text: str) -> None:
    """Print and record the title of the figures that follow."""
    RECORD.heading = text
    print(text, flush=True)


def show(label: str, figure: str, goal: str = "", *, met: bool | None = None) -> None:
    """Print and record a figure, its goal, and whether the goal is met."""
    verdict = "" if met is None else f"  goal {goal}: {'met' if met else 'NOT MET'}"
    print(f"  {label:{LABEL}}{figure:>18}{verdict}", flush=True)
    RECORD.lines.append(Line(RECORD.benchmark, RECORD.heading, label, figure, goal, met))


def progress(text: str, *, end: bool = False) -> None:
    """Show progress in one line that is overwritten on a terminal; elsewhere, show only the `end`."""
    if sys.stderr.isatty():
        print(f"\r\033[K  {text}", end="\n" if end else "", file=sys.stderr, flush=True)
    elif end:
        print(f"  {text}", file=sys.stderr, flush=True)


def ms(seconds: float) -> str:
    """Format a time for people."""
    return f"{seconds * 1e3:.1f} ms"


def p99(values: Iterable[float]) -> float:
    """Return the 99th percentile; the largest of fewer than 100 values."""
    ordered = sorted(values)
    return ordered[int(len(ordered) * 0.99)]


def spread(values: list[float]) -> str:
    """Format the median and the largest of some times."""
    return f"{ms(statistics.median(values))}, max {ms(max(values))}"


async def timed(work: Awaitable[object]) -> float:
    """Return how long something takes, in seconds."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


def named(model: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call to this model."""
    return (("corral-model", model),)


async def predict(loader: LoaderUnderTest, model: str) -> None:
    """Call a model once, which loads it if necessary."""
    await loader.data.Predict(PROMPT, metadata=named(model))


async def unload(loader: LoaderUnderTest, model: str) -> None:
    """Unload a model."""
    await loader.control.UnloadModel(pb.UnloadModelRequest(name=model))


async def load(loader: LoaderUnderTest, model: str) -> pb.Model:
    """Load a model, even after failed loads, and return it."""
    request = pb.LoadModelRequest(name=model, reset_backoff=True)
    answer = await loader.control.LoadModel(request)
    loaded: pb.Model = answer.model
    return loaded


async def paced(
    call: Callable[[], Awaitable[object]], *, rate: float, until: asyncio.Future[None]
) -> list[float]:
    """Start calls at a fixed rate, whether or not earlier ones have ended; return their times.

    Each time is measured from when the call was due, so a client that falls behind does not hide the wait.
    """
    times: list[float] = []
    calls: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        await call()
        times.append(time.perf_counter() - due)

    began = time.perf_counter()
    number = 0
    while not until.done():
        due = began + number / rate
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        task = asyncio.create_task(one(due))
        calls.add(task)
        task.add_done_callback(calls.discard)
        number += 1
    await asyncio.gather(*calls)
    return times


def count_starts(folder: Path) -> None:
    """Make a backend's run.sh record its starts; `starts` counts them."""
    run = folder / "run.sh"
    first, rest = run.read_text().split("\n", 1)
    run.write_text(f'{first}\necho $$ >> "{folder}/starts"\n{rest}')


def starts(folder: Path) -> int:
    """Return how many processes of the backend were started."""
    file = folder / "starts"
    return len(file.read_text().splitlines()) if file.exists() else 0


def cpu(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    return sum(psutil.Process(pid).cpu_times()[:2])
