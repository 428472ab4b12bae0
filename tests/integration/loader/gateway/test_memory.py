"""Calls that end early leave nothing in the loader's memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
import psutil
import pytest

from corral.backend import backend_pb2 as pb
from tests.tools.outcomes import steps
from tests.tools.processes import processes_in
from tests.tools.running import LoaderUnderTest

MIB = 1024**2
HANGS = (("corral-model", "m"), *steps(("read",), ("hang",)))
REQUEST = pb.PredictOptions(Prompt="x" * 4_000_000)
ROUNDS = 5
CALLS = 8
"""Calls at a time: 160 MB of requests in all rounds."""
ROOM = 64 * MIB


@pytest.fixture
async def running(loader: LoaderUnderTest) -> LoaderUnderTest:
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    # A suspended backend does not stop by itself.
    await loader.start("--free-timeout", "200ms", "--terminate-timeout", "200ms")
    return loader


def memory(loader: LoaderUnderTest) -> int:
    own: int = psutil.Process(loader.service.pid).memory_full_info().uss
    return own


@pytest.mark.parametrize("takes", [True, False], ids=["taken", "not taken"])
@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_calls_that_end_early(running: LoaderUnderTest, end: str, takes: bool) -> None:
    """With a backend that has the request, and with one that reads nothing."""
    await running.data.Predict(REQUEST, metadata=HANGS[:1])
    if not takes:
        (backend,) = processes_in(running.backends)
        backend.suspend()

    async def call() -> None:
        limit = 1.0 if end == "deadline" else 30.0
        call = running.data.Predict(REQUEST, metadata=HANGS, timeout=limit)
        await asyncio.wait([asyncio.ensure_future(call.code())], timeout=1.0)
        call.cancel()
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await call

    async def rounds(count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*(call() for _ in range(CALLS)))

    await rounds(1)
    before = memory(running)
    await rounds(ROUNDS)
    assert memory(running) - before < ROOM
