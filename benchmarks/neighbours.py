"""How another model's troubles affect a model's callers: its p99 during them, and alone.

Each trouble is measured in three settings in turn: nothing else runs; the same program runs in the same
way without the loader, which shows the cost of sharing the processors; and the loader runs it. Calls are
started at a fixed rate, whether or not earlier ones have ended.
"""

from __future__ import annotations

import asyncio
import signal
import statistics
import tempfile
from asyncio.subprocess import DEVNULL
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from corral.backend import backend_pb2, backend_pb2_grpc
from corral.loader.v1 import loader_pb2 as pb
from tests.tools.processes import free_port
from tests.tools.running import LoaderUnderTest

from .figures import count_starts, cpu, heading, load, ms, p99, paced, predict, show, starts, unload

GOAL = 2.0
"""The maximum p99, as a multiple of the p99 alone."""
ROUNDS, FULL_ROUNDS = 3, 5
RATE = 100.0
LOAD_SECONDS = 5.0
OTHER_SECONDS = 4.0
CRASH_PAUSE = 0.25
CRASHES = 5
"""The fewest crashes that count as a backend that crashes again and again."""
START_TIMEOUT = 20.0

Beside = Callable[[LoaderUnderTest], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Trouble:
    """What the other model does, for how long, with and without the loader."""

    behaviour: dict[str, Any]
    seconds: float
    loaded: Beside
    alone: Beside


@asynccontextmanager
async def _background(work: Awaitable[object]) -> AsyncIterator[None]:
    """Run `work` during the block; raise RuntimeError if it ended early, as the trouble then was too short."""
    task = asyncio.ensure_future(work)
    try:
        yield
        if task.done():
            raise RuntimeError(f"the trouble ended too early: {task.exception()}")
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await task


@asynccontextmanager
async def _loading(loader: LoaderUnderTest) -> AsyncIterator[None]:
    async with _background(load(loader, "b")):
        yield
    request = pb.UnloadModelRequest(name="b", force=True)
    await loader.control.UnloadModel(request)


@asynccontextmanager
async def _flooding(loader: LoaderUnderTest) -> AsyncIterator[None]:
    await load(loader, "b")
    yield
    await unload(loader, "b")


@asynccontextmanager
async def _crashing(loader: LoaderUnderTest) -> AsyncIterator[None]:
    async def again_and_again() -> None:
        while True:
            with suppress(grpc.aio.AioRpcError):
                await load(loader, "b")
            await asyncio.sleep(CRASH_PAUSE)

    before = starts(loader.backends / "b")
    async with _background(again_and_again()):
        yield
    if starts(loader.backends / "b") - before < CRASHES:
        raise RuntimeError("the backend did not crash again and again")


@asynccontextmanager
async def _process(loader: LoaderUnderTest, address: str = "127.0.0.1:0") -> AsyncIterator[Any]:
    folder = loader.backends / "b"
    process = await asyncio.create_subprocess_exec(
        folder / "run.sh",
        "--addr",
        address,
        cwd=folder,
        stdout=DEVNULL,
        stderr=DEVNULL,
        start_new_session=True,  # as the loader does: the kernel may schedule by session
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


@asynccontextmanager
async def _process_loading(loader: LoaderUnderTest) -> AsyncIterator[None]:
    address = f"127.0.0.1:{free_port()}"

    async def load_it() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = backend_pb2_grpc.BackendStub(channel)
            await stub.LoadModel(backend_pb2.ModelOptions(Model="b"), wait_for_ready=True)

    async with _process(loader, address), _background(load_it()):
        yield


@asynccontextmanager
async def _process_flooding(loader: LoaderUnderTest) -> AsyncIterator[None]:
    address = f"127.0.0.1:{free_port()}"
    async with _process(loader, address), grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), START_TIMEOUT)
        yield


@asynccontextmanager
async def _processes_crashing(loader: LoaderUnderTest) -> AsyncIterator[None]:
    async def again_and_again() -> None:
        while True:
            async with _process(loader) as process:
                await process.wait()
            await asyncio.sleep(CRASH_PAUSE)

    async with _background(again_and_again()):
        yield


TROUBLES: dict[str, Trouble] = {
    "loads for 5 s": Trouble(
        {"load_seconds": LOAD_SECONDS}, LOAD_SECONDS, _loading, _process_loading
    ),
    "loads for 5 s, using a processor": Trouble(
        {"load_seconds": LOAD_SECONDS, "load_progress": True},
        LOAD_SECONDS,
        _loading,
        _process_loading,
    ),
    "hangs at its start": Trouble({"start": "hang"}, OTHER_SECONDS, _loading, _process),
    "crashes at its start, again and again": Trouble(
        {"start": "kill:SIGSEGV"}, OTHER_SECONDS, _crashing, _processes_crashing
    ),
    "floods stderr, 10 MB/s": Trouble(
        {"flood": "stderr", "flood_bytes": 10_000_000}, OTHER_SECONDS, _flooding, _process_flooding
    ),
    "floods stderr without limit": Trouble(
        {"flood": "stderr"}, OTHER_SECONDS, _flooding, _process_flooding
    ),
}


@asynccontextmanager
async def _nothing(loader: LoaderUnderTest) -> AsyncIterator[None]:
    yield


async def run(*, full: bool) -> None:
    """Measure and print."""
    rounds = FULL_ROUNDS if full else ROUNDS
    times: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    used: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        loader = LoaderUnderTest(Path(folder) / "home")
        loader.add_backend("a")
        count_starts(loader.add_backend("b"))
        loader.add_model("a", "a")
        loader.add_model("b", "b")
        await loader.start("--log-level", "error")
        try:
            await load(loader, "a")
            for _ in range(rounds):
                for name, trouble in TROUBLES.items():
                    loader.behave("b", **trouble.behaviour)
                    for how, beside in (
                        ("quiet", _nothing),
                        ("alone", trouble.alone),
                        ("loader", trouble.loaded),
                    ):
                        before = cpu(loader.service.pid)
                        times[name, how].append(await _window(loader, beside, trouble.seconds))
                        if how == "loader":
                            share = (cpu(loader.service.pid) - before) / trouble.seconds
                            used[name].append(share)
        finally:
            await loader.close()
    heading(
        f"neighbours: p99 of model A at {RATE:.0f} calls a second, {rounds} interleaved rounds,"
        " medians of the rounds"
    )
    for name in TROUBLES:
        _report(name, times, statistics.median(used[name]))


async def _window(loader: LoaderUnderTest, beside: Beside, seconds: float) -> list[float]:
    async with beside(loader):
        over = asyncio.ensure_future(asyncio.sleep(seconds))
        return await paced(partial(predict, loader, "a"), rate=RATE, until=over)


def _report(name: str, times: dict[tuple[str, str], list[list[float]]], used: float) -> None:
    quiet, alone, loader = (
        [p99(window) for window in times[name, how]] for how in ("quiet", "alone", "loader")
    )
    ratio = statistics.median(x / y for x, y in zip(loader, quiet, strict=True))
    show(f"while B {name} (the loader uses {used * 100:.0f} % of a processor)", "")
    show("  A alone", ms(statistics.median(quiet)))
    show("  beside B, which runs without the loader", ms(statistics.median(alone)))
    show("  beside B, through the loader", ms(statistics.median(loader)))
    show("  against A alone", f"{ratio:.2f}", f"{GOAL:g}", met=ratio <= GOAL)
    fair = statistics.median(x / y for x, y in zip(loader, alone, strict=True))
    show("  against B without the loader", f"{fair:.2f}")
