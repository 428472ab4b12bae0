"""Many clients at once, and deaths at random moments: no call hangs, nothing is left behind."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import grpc
import psutil
import pytest

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2 as pb
from services.common.rpc.status import from_rpc_error
from tests.tools.running import LoaderUnderTest, eventually, processes_in

HANG = 20.0
"""Seconds after which a call counts as lost; the slowest takes about two."""

EXPECTED = {
    "BACKEND_CRASHED",
    "BACKEND_START_FAILED",
    "DEADLINE_EXCEEDED",
    "LOAD_BACKOFF",
    "MODEL_BUSY",
    "MODEL_LOAD_FAILED",
    "MODEL_UNLOADED",
}
EXPECTED_IN_A_HURRY = EXPECTED | {"DEADLINE_TOO_SHORT"}
"""A call is refused if a load takes longer than its deadline, as it does on a busy machine."""
QUICK_BACKOFF = ("--load-backoff", "10ms", "--load-backoff-maximum", "50ms")


async def outcome(call: Awaitable[Any], seen: Counter[str]) -> None:
    """Await the call and count how it ended; a call that never ends fails the test."""
    try:
        await asyncio.wait_for(call, HANG)
    except grpc.aio.AioRpcError as error:
        seen[from_rpc_error(error).reason] += 1
    except asyncio.CancelledError:
        seen["cancelled"] += 1
    else:
        seen["ok"] += 1


def predict(loader: LoaderUnderTest, model: str, timeout: float | None) -> Any:
    return loader.data.Predict(
        backend_pb2.PredictOptions(), metadata=(("corral-model", model),), timeout=timeout
    )


def load(loader: LoaderUnderTest, model: str) -> Any:
    return loader.control.LoadModel(pb.LoadModelRequest(name=model))


def unload(loader: LoaderUnderTest, model: str, force: bool) -> Any:
    return loader.control.UnloadModel(pb.UnloadModelRequest(name=model, force=force))


async def test_first_calls_that_leave_at_random(loader: LoaderUnderTest) -> None:
    """Whichever callers leave, and whenever, the rest are answered, by one process."""
    loader.add_backend("fake", load_seconds=0.2)
    loader.add_model("m", "fake")
    await loader.start()
    chance = random.Random(1)
    seen: Counter[str] = Counter()

    async def leaving() -> None:
        call = predict(loader, "m", chance.choice([0.01, 0.1, 0.3, None]))
        ended = asyncio.ensure_future(outcome(call, seen))
        await asyncio.wait([ended], timeout=chance.uniform(0, 1))
        call.cancel()
        await ended

    staying = [outcome(predict(loader, "m", None), seen) for _ in range(50)]
    await asyncio.gather(*(leaving() for _ in range(150)), *staying)
    assert seen["ok"] >= 50
    assert seen.keys() <= {"ok", "cancelled", "DEADLINE_EXCEEDED"}, seen
    # A call cancelled while the backend was answering it is noted there too.
    assert [note for note in loader.notes("fake") if note != "cancelled"] == ["load m.bin"]
    await unload(loader, "m", force=False)


@pytest.mark.parametrize("models", [1, 4])
async def test_loads_unloads_calls_and_kills_at_once(loader: LoaderUnderTest, models: int) -> None:
    names = [f"m{number}" for number in range(models)]
    for name in names:
        loader.add_backend(name)
        loader.add_model(name, name)
    await loader.start(*QUICK_BACKOFF, "--drain-timeout", "300ms")
    chance = random.Random(models)
    seen: Counter[str] = Counter()
    hurried: Counter[str] = Counter()
    end = time.monotonic() + 3

    async def client() -> None:
        while time.monotonic() < end:
            name = chance.choice(names)
            what = chance.random()
            if what < 0.3:
                await outcome(load(loader, name), seen)
            elif what < 0.5:
                await outcome(unload(loader, name, chance.random() < 0.5), seen)
            elif what < 0.9:
                timeout = chance.choice([0.02, 0.2, None])
                await outcome(predict(loader, name, timeout), hurried if timeout else seen)
            else:
                with suppress(IndexError, psutil.Error):
                    chance.choice(processes_in(loader.backends)).kill()

    await asyncio.gather(*(client() for _ in range(32)))
    assert seen.keys() <= EXPECTED | {"ok"}, seen
    assert hurried.keys() <= EXPECTED_IN_A_HURRY | {"ok"}, hurried
    assert seen["ok"] + hurried["ok"] > 0
    for name in names:
        await unload(loader, name, force=True)
    assert processes_in(loader.backends) == []

    async def serves() -> bool:
        results: Counter[str] = Counter()
        await outcome(predict(loader, names[0], None), results)
        return results["ok"] == 1

    await eventually(serves, what="a call after the storm")
    await unload(loader, names[0], force=False)  # refused if a lease had been lost


@pytest.mark.parametrize("after", [0.0, 0.05, 0.2, 0.5])
async def test_a_loader_killed_amid_many_starts_leaves_nothing(
    loader: LoaderUnderTest, after: float
) -> None:
    for number in range(8):
        loader.add_backend(f"b{number}", exec_=number % 2 == 0, children=1, escapee=number == 0)
        loader.add_model(f"m{number}", f"b{number}")
    await loader.start()
    loads = [asyncio.ensure_future(load(loader, f"m{number}")) for number in range(8)]
    await eventually(lambda: processes_in(loader.backends), what="a first process")
    await asyncio.wait(loads, timeout=after)
    loader.service.kill()
    killed = time.monotonic()
    await asyncio.gather(*loads, return_exceptions=True)
    await eventually(
        lambda: not processes_in(loader.backends), timeout=2, what="the end of all backends"
    )
    assert time.monotonic() - killed < 2
