"""`corral.client` while its model is unloaded, crashes, or is being evicted."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest

from corral import client
from corral.backend import backend_pb2 as pb
from services.common.rpc.status import from_rpc_error
from tests.tools.direct_clients import (
    READY,
    aio_at,
    at,
    has_leases,
    in_thread,
)
from tests.tools.loader_calls import FOREVER, begin, model, prompt, unload
from tests.tools.running import LoaderUnderTest, eventually
from tests.tools.waiting import eventually_sync


async def test_an_unused_lease_is_let_go(running: LoaderUnderTest) -> None:
    def work() -> None:
        backend = at(running, idle=0.2)
        assert backend.ready(READY)
        eventually_sync(lambda: not backend.direct, what="the end of the lease")
        # The next call gets the direct route back at once: the model is still loaded.
        backend.Predict(prompt("x"), timeout=READY)
        assert backend.direct
        with at(running, idle=0.2) as busy:
            assert busy.ready(READY)
            stream = busy.PredictStream(FOREVER)
            for _ in range(50):  # half a second
                next(stream)
            assert busy.direct
            stream.cancel()
        backend.close()
        backend.close()

    await in_thread(work)
    await has_leases(running, 0)


async def test_an_unload_moves_the_client(running: LoaderUnderTest) -> None:
    async with aio_at(running) as backend:
        assert await backend.ready(READY)
        pid = (await model(running)).instances[0].pid
        stream = backend.PredictStream(pb.PredictOptions(Tokens=30))
        await stream.read()
        unloading = asyncio.ensure_future(running.control.UnloadModel(unload()))
        await eventually(lambda: not backend.direct, what="the advice to move")
        # New calls wait for the next instance while the stream finishes on the old one.
        calls = [backend.Predict(prompt("x"), timeout=READY) for _ in range(5)]
        assert len([reply async for reply in _rest(stream)]) == 29
        await unloading
        await asyncio.gather(*calls)
        assert await backend.ready(READY)
        assert (await model(running)).instances[0].pid != pid
    await has_leases(running, 0)


async def _rest(stream: Any) -> AsyncIterator[Any]:
    while (reply := await stream.read()) is not grpc.aio.EOF:
        yield reply


async def test_no_call_is_lost_while_the_model_is_unloaded_again_and_again(
    running: LoaderUnderTest,
) -> None:
    stop = threading.Event()

    def work(backend: client.Model) -> int:
        done = 0
        while not stop.is_set():
            assert backend.Predict(prompt("x"), timeout=READY).message
            done += 1
        return done

    backend = at(running)
    with ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(work, backend) for _ in range(4)]
        try:
            for _ in range(5):
                assert await in_thread(lambda: backend.ready(READY))
                await running.control.UnloadModel(unload())
        finally:
            stop.set()
        done = [await asyncio.wrap_future(thread) for thread in threads]
    assert all(done)
    await in_thread(backend.close)
    await has_leases(running, 0)


async def test_a_crash_is_told_and_recovered_from(running: LoaderUnderTest) -> None:
    async with aio_at(running) as backend:
        assert await backend.ready(READY)
        stream = backend.PredictStream(FOREVER)
        await stream.read()
        os.kill((await model(running)).instances[0].pid, signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in _rest(stream):
                pass
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        cause = await backend.cause(5)
        assert cause is not None
        assert from_rpc_error(cause).reason == "BACKEND_CRASHED"
        assert not backend.direct
        assert (await backend.Predict(prompt("x"), timeout=READY)).message
        assert await backend.ready(READY)


async def test_a_blocking_call_that_finds_nobody_goes_on_to_the_loader(
    running: LoaderUnderTest,
) -> None:
    backend = at(running)
    assert await in_thread(lambda: backend.ready(READY))
    # The loader's message arrives too late here: the client has to notice by itself.
    running.service.process.send_signal(signal.SIGSTOP)
    os.kill(_backend_pid(running), signal.SIGKILL)
    failures = []

    def work() -> bytes:
        for _ in range(100):
            try:
                message: bytes = backend.Predict(prompt("x"), timeout=READY).message
                return message
            except grpc.RpcError as error:
                failures.append(error.code())
        raise AssertionError("no call came through")

    answer = asyncio.ensure_future(in_thread(work))
    await eventually(lambda: not backend.direct, what="the first call's end")
    running.service.process.send_signal(signal.SIGCONT)
    assert await answer
    # Calls that may have reached it are not retried.
    assert set(failures) <= {grpc.StatusCode.UNAVAILABLE} and len(failures) <= 2
    await in_thread(backend.close)


def _backend_pid(running: LoaderUnderTest) -> int:
    loader = psutil.Process(running.service.pid)
    [pid] = [
        child.pid
        for child in loader.children(recursive=True)
        if "backend_fake" in " ".join(child.cmdline())
    ]
    return pid


async def test_another_model_gets_the_room_of_an_idle_client(loader: LoaderUnderTest) -> None:
    await begin(loader, "m", "other")
    await loader.start("--max-active-backends", "1")
    async with aio_at(loader) as one, aio_at(loader, "other") as two:
        assert await one.ready(READY)
        assert (await two.Predict(prompt("x"), timeout=READY)).message
        assert not one.direct
        assert (await one.Predict(prompt("x"), timeout=READY)).message


async def test_nobody_waits_for_a_backend_that_is_gone(running: LoaderUnderTest) -> None:
    """`wait_for_ready` is for the loader: no backend ever comes back at a crashed one's address."""
    async with aio_at(running) as backend:
        blocking = at(running)
        assert await backend.ready(READY) and await in_thread(lambda: blocking.ready(READY))
        running.service.process.send_signal(signal.SIGSTOP)
        os.kill(_backend_pid(running), signal.SIGKILL)
        await eventually(lambda: _broken(backend), what="the end of the connection")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await backend.Predict(prompt("x"), wait_for_ready=True, timeout=READY)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        answer = asyncio.ensure_future(in_thread(lambda: _insist(blocking)))
        await eventually(lambda: not blocking.direct, what="the word that nobody listens")
        running.service.process.send_signal(signal.SIGCONT)
        assert (await answer).message
        await in_thread(blocking.close)


def _broken(backend: Any) -> bool:
    channel = backend._keeper.rules.current.channel
    return channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.TRANSIENT_FAILURE


def _insist(backend: client.Model) -> Any:
    """Call until the client notices the broken connection; until then a call may have been sent."""
    while True:
        try:
            return backend.Predict(prompt("x"), wait_for_ready=True, timeout=READY)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
