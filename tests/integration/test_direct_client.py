"""`corral.client` against a real loader and real processes: which way calls take, and what they survive."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest

from corral import client
from corral.backend import backend_pb2 as pb
from corral.client import aio
from corral.loader.v1 import loader_pb2
from services.common.status import from_rpc_error
from tests.tools.corral_command import corral, started
from tests.tools.loader_calls import FOREVER, begin, load, model, prompt, states, unload
from tests.tools.processes import free_port
from tests.tools.running import LoaderUnderTest, eventually
from tests.tools.service import environment
from tests.tools.waiting import eventually_sync

READY = 20.0
DIRECT = b"grpc-python/"
"""How the blocking client calls itself; what comes from the loader is the loader's."""


def at(running: LoaderUnderTest, name: str = "m", **options: Any) -> client.Model:
    return client.connect(name, running.service.address, **options)


def aio_at(running: LoaderUnderTest, name: str = "m", **options: Any) -> aio.Model:
    return aio.connect(name, running.service.address, **options)


async def leases(running: LoaderUnderTest, name: str = "m") -> int:
    return sum(each.direct_leases for each in (await model(running, name)).instances)


async def has_leases(running: LoaderUnderTest, count: int) -> None:
    async def so_many() -> bool:
        return await leases(running) == count

    await eventually(so_many, what=f"{count} leases")


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


async def test_the_one_liner(running: LoaderUnderTest) -> None:
    def work() -> bytes:
        with at(running) as backend:
            assert backend.ready(READY) and backend.direct
            message: bytes = backend.Predict(prompt("hi"), timeout=READY).message
            return message

    assert DIRECT in await in_thread(work)
    await has_leases(running, 0)


async def test_asyncio(running: LoaderUnderTest) -> None:
    async with aio_at(running) as backend:
        # The first call begins at once, whichever way there is.
        assert (await backend.Predict(prompt("hi"), timeout=READY)).message
        assert await backend.ready(READY) and backend.direct
        assert await leases(running) == 1
        await backend.Predict(prompt("hi"), timeout=READY)
        counted = (await model(running)).instances[0].total_calls
        await backend.Predict(prompt("hi"), timeout=READY)
        assert (await model(running)).instances[0].total_calls == counted
    await has_leases(running, 0)
    await backend.close()


async def test_every_kind_of_call_goes_direct(running: LoaderUnderTest) -> None:
    mine = (("my-key", "my-value"), ("authorization", "Bearer mine"))

    def work() -> None:
        with at(running) as backend:
            assert backend.ready(READY)
            reply, call = backend.Predict.with_call(prompt("x"), metadata=mine)
            assert b"my-value" in reply.message and b"Bearer mine" not in reply.message
            assert ("fake-trailing", "t") in call.trailing_metadata()
            future = backend.Predict.future(prompt("x"))
            assert DIRECT in future.result(READY).message
            stream = backend.PredictStream(pb.PredictOptions(Tokens=3))
            assert [reply.message for reply in stream] == [b"0 ", b"1 ", b"2 "]
            live = backend.AudioTranscriptionLive(iter([_config(), _audio(3)]))
            assert [answer.ready or answer.delta for answer in live][:2] == [True, "3 samples "]
            assert backend.Health(pb.HealthMessage()).message == b"OK"
            with pytest.raises(grpc.RpcError) as refused:
                backend.Free(pb.HealthMessage())
            assert from_rpc_error(refused.value).reason == "CONTROL_PLANE_ONLY"
            eventually_sync(lambda: _active(backend) == 0, what="the end of all calls")

    await in_thread(work)


async def test_every_kind_of_call_goes_direct_with_asyncio(running: LoaderUnderTest) -> None:
    async with aio_at(running) as backend:
        assert await backend.ready(READY)
        mine = (("my-key", "my-value"), ("authorization", "Bearer mine"))
        seen = (await backend.Predict(prompt("x"), metadata=mine)).message
        assert b"my-value" in seen and b"Bearer mine" not in seen
        stream = backend.PredictStream(pb.PredictOptions(Tokens=3))
        assert [reply.message async for reply in stream] == [b"0 ", b"1 ", b"2 "]
        live = backend.AudioTranscriptionLive()
        await live.write(_config())
        assert (await live.read()).ready
        await live.done_writing()
        assert (await live.read()).final_result is not None
        assert await live.read() is grpc.aio.EOF
        endless = backend.PredictStream(FOREVER)
        await endless.read()
        endless.cancel()
        await eventually(lambda: _active(backend) == 0, what="the end of all calls")


def _config() -> pb.TranscriptLiveRequest:
    return pb.TranscriptLiveRequest(config=pb.TranscriptLiveConfig(language="de"))


def _audio(samples: int) -> pb.TranscriptLiveRequest:
    return pb.TranscriptLiveRequest(audio=pb.TranscriptLiveAudio(pcm=[0.5] * samples))


def _active(backend: Any) -> int:
    lease = backend._keeper.rules.current
    return lease.active if lease is not None else 0


async def test_looking_neither_loads_nor_holds(running: LoaderUnderTest) -> None:
    async with aio_at(running) as backend:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await backend.Health(pb.HealthMessage())
        assert from_rpc_error(failed.value).reason == "MODEL_NOT_LOADED"
        assert running.notes("fake") == []


async def test_a_name_that_is_not_ascii(running: LoaderUnderTest) -> None:
    running.add_model("münchen", "fake")
    async with (
        aio_at(running, "münchen") as backend,
        aio_at(running, "münchen", direct=False) as through,
    ):
        assert await backend.ready(READY)
        assert (await backend.Predict(prompt("x"))).message
        assert (await through.Predict(prompt("x"))).message and not through.direct


async def test_an_unused_lease_is_let_go(running: LoaderUnderTest) -> None:
    def work() -> None:
        backend = at(running, idle=0.2)
        assert backend.ready(READY)
        eventually_sync(lambda: not backend.direct, what="the end of the lease")
        # The next call has it back, at once: the model is still loaded.
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
        # New calls wait for the next instance while the stream ends on the old one.
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
    # The loader's word comes too late here: the client has to see for itself.
    running.service.process.send_signal(signal.SIGSTOP)
    os.kill(_backend_pid(running), signal.SIGKILL)
    failures = []

    def work() -> bytes:
        for _ in range(100):
            try:
                message: bytes = backend.Predict(prompt("x"), timeout=READY).message
                return message
            except grpc.RpcError as error:
                failures.append(error.code())  # type: ignore[attr-defined]
        raise AssertionError("no call came through")

    answer = asyncio.ensure_future(in_thread(work))
    await eventually(lambda: not backend.direct, what="the first call's end")
    running.service.process.send_signal(signal.SIGCONT)
    assert await answer
    # The calls that may have reached it are not repeated.
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


async def test_without_leases_calls_go_through_the_loader(loader: LoaderUnderTest) -> None:
    await begin(loader, "m")
    await loader.start("--direct-leases", "0")
    async with aio_at(loader) as backend:
        assert not await backend.ready(READY)
        assert (await backend.Predict(prompt("x"), timeout=READY)).message

    def work() -> None:
        with at(loader) as blocking:
            assert not blocking.ready(READY)
            assert blocking.Predict(prompt("x"), timeout=READY).message

    await in_thread(work)


async def test_an_address_that_cannot_be_reached(running: LoaderUnderTest) -> None:
    """As from a container, where the backend's socket is not there."""
    await running.control.LoadModel(loader_pb2.LoadModelRequest(name="m"))
    address = (await model(running)).instances[0].address
    async with aio_at(running) as backend:
        backend._keeper._connect = _elsewhere(backend._keeper._connect)  # type: ignore[method-assign]
        assert not await backend.ready(READY)
        assert (await backend.Predict(prompt("x"), timeout=READY)).message
        await has_leases(running, 0)
    assert address


def _elsewhere(connect: Any) -> Any:
    def moved(found: loader_pb2.ResolveModelResponse) -> Any:
        found.address = f"127.0.0.1:{free_port()}"
        return connect(found)

    return moved


async def test_a_model_that_cannot_be_loaded_says_why(running: LoaderUnderTest) -> None:
    async with aio_at(running, "nobody") as backend:
        assert not await backend.ready(READY)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await backend.Predict(prompt("x"))
        assert from_rpc_error(failed.value).reason == "MODEL_NOT_FOUND"


async def test_another_model_gets_the_room_of_an_idle_client(loader: LoaderUnderTest) -> None:
    await begin(loader, "m", "other")
    await loader.start("--max-active-backends", "1")
    async with aio_at(loader) as one, aio_at(loader, "other") as two:
        assert await one.ready(READY)
        assert (await two.Predict(prompt("x"), timeout=READY)).message
        assert not one.direct
        assert (await one.Predict(prompt("x"), timeout=READY)).message


async def test_many_threads_and_many_tasks(running: LoaderUnderTest) -> None:
    backend = at(running)

    def work(_: int) -> int:
        for _ in range(20):
            assert backend.Predict(prompt("x"), timeout=READY).message
        return sum(1 for _ in backend.PredictStream(pb.PredictOptions(Tokens=5)))

    with ThreadPoolExecutor(8) as pool:
        assert await in_thread(lambda: list(pool.map(work, range(8)))) == [5] * 8
    assert backend.direct and _active(backend) == 0
    async with aio_at(running) as other:
        assert await other.ready(READY)
        replies = await asyncio.gather(*(other.Predict(prompt("x")) for _ in range(100)))
        assert len(replies) == 100
        await eventually(lambda: _active(other) == 0, what="the end of all calls")
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
    address = {"CORRAL_LOADER": running.service.address}
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
