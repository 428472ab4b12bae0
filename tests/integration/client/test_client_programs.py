"""Programs that use `corral.client`: what they leave behind, however they end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest

from corral.backend import backend_pb2 as pb
from corral.loader.v1 import loader_pb2
from tests.tools.corral_command import corral, started
from tests.tools.direct_clients import (
    DIRECT,
    READY,
    active,
    aio_at,
    at,
    has_leases,
    in_thread,
)
from tests.tools.loader_calls import load, model, prompt, states, unload
from tests.tools.running import LoaderUnderTest, eventually
from tests.tools.service import environment


async def test_many_threads_and_many_tasks(running: LoaderUnderTest) -> None:
    backend = at(running)

    def work(_: int) -> int:
        for _ in range(20):
            assert backend.Predict(prompt("x"), timeout=READY).message
        return sum(1 for _ in backend.PredictStream(pb.PredictOptions(Tokens=5)))

    with ThreadPoolExecutor(8) as pool:
        assert await in_thread(lambda: list(pool.map(work, range(8)))) == [5] * 8
    assert backend.direct and active(backend) == 0
    async with aio_at(running) as other:
        assert await other.ready(READY)
        replies = await asyncio.gather(*(other.Predict(prompt("x")) for _ in range(100)))
        assert len(replies) == 100
        await eventually(lambda: active(other) == 0, what="the end of all calls")
    await in_thread(backend.close)


async def test_nothing_is_left_behind(running: LoaderUnderTest) -> None:
    def cycle() -> None:
        with at(running) as backend:
            backend.ready(READY)
            backend.Predict(prompt("x"), timeout=READY)

    async def cycles(count: int) -> tuple[int, int]:
        for _ in range(count):
            await in_thread(cycle)
            async with aio_at(running) as backend:
                await backend.ready(READY)
                await backend.Predict(prompt("x"), timeout=READY)
        gc.collect()
        this = psutil.Process()
        return this.num_fds(), sum("hold" in thread.name for thread in threading.enumerate())

    before, _ = await cycles(5)
    after, threads = await cycles(20)
    assert after <= before + 2 and threads == 0
    await has_leases(running, 0)


async def test_corral_run_goes_direct_and_tells_of_a_crash(running: LoaderUnderTest) -> None:
    address: dict[str, Any] = {"CORRAL_LOADER": running.service.address}
    await running.control.LoadModel(load())
    done = await corral(running.home, "run", "m", "hi", "--max-tokens", "3", **address)
    assert (done.code, done.out, done.err) == (0, "0 1 2 \n", "")
    async with started(
        running.home, "run", "m", "hi", "--max-tokens", "9999", **address
    ) as process:
        assert process.stdout is not None
        await process.stdout.readexactly(1)
        [instance] = (await model(running)).instances
        assert (instance.direct_leases, instance.active_calls) == (1, 0)
        os.kill(instance.pid, signal.SIGKILL)
        _, err = await process.communicate()
    assert process.returncode == 1
    assert b"SIGKILL" in err and b"corral logs m" in err
    await has_leases(running, 0)


ONE_CALL = """
import sys
from corral.backend.backend_pb2 import PredictOptions
from corral.client import connect
backend = connect("m", sys.argv[1])
assert backend.ready(20)
print(backend.Predict(PredictOptions(Prompt="x")).message, flush=True)
if sys.argv[2] == "stay":
    sys.stdin.read()
"""


@pytest.fixture
def programs(running: LoaderUnderTest) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(how: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", ONE_CALL, running.service.address, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(PYTHONPATH=":".join(sys.path)),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


async def test_a_program_that_closes_nothing_ends(
    running: LoaderUnderTest, programs: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    process = programs("go")
    out, err = await asyncio.to_thread(process.communicate, timeout=READY)
    assert process.returncode == 0 and DIRECT in out, err
    await has_leases(running, 0)


async def test_a_program_that_is_killed_frees_the_model(
    running: LoaderUnderTest, programs: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    process = programs("stay")
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline)
    await has_leases(running, 1)
    process.kill()
    await has_leases(running, 0)
    await running.control.UnloadModel(unload())
    assert (await states(running))["m"] == loader_pb2.Model.STATE_UNLOADED


@pytest.mark.parametrize("way", ["Predict", "Free"])
async def test_a_callback_may_close_the_client(running: LoaderUnderTest, way: str) -> None:
    """Free goes through the loader, and its callback runs in that connection's thread."""

    def work() -> None:
        backend = at(running)
        assert backend.ready(READY)
        closed = threading.Event()
        request = prompt("x") if way == "Predict" else pb.HealthMessage()

        def close(_: Any) -> None:
            backend.close()
            closed.set()

        getattr(backend, way).future(request).add_done_callback(close)
        assert closed.wait(READY)

    await in_thread(work)
    await has_leases(running, 0)


async def test_calls_after_the_end_are_refused(running: LoaderUnderTest) -> None:
    """Including a method first used after the close: gRPC would end the process."""

    def work(*, direct: bool) -> None:
        backend = at(running, direct=direct)
        backend.ready(READY)
        backend.close()
        for call in (backend.Predict, backend.PredictStream, backend.Predict.future):
            with pytest.raises(ValueError, match="closed"):
                call(prompt("x"))

    await in_thread(lambda: work(direct=True))
    await in_thread(lambda: work(direct=False))
    other = aio_at(running)
    assert await other.ready(READY)
    await other.close()
    with pytest.raises(grpc.aio.UsageError):
        await other.Predict(prompt("x"))


async def test_threads_may_call_while_another_closes(running: LoaderUnderTest) -> None:
    def work() -> None:
        backend = at(running)
        backend.ready(READY)
        begun = threading.Barrier(5)

        def call() -> None:
            begun.wait(READY)
            with pytest.raises((ValueError, grpc.RpcError)):
                while True:
                    list(backend.PredictStream(pb.PredictOptions(Tokens=1)))
                    backend.Predict(prompt("x"), timeout=READY)

        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(call) for _ in range(4)]
            begun.wait(READY)
            backend.close()
            for each in calls:
                each.result(READY)

    for _ in range(5):
        await in_thread(work)
    await has_leases(running, 0)
