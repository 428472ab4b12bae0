"""The backend's queue: which requests wait, which are refused, and how abandoned ones end."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc
from tests.tools.llama_backend import CALL_TIMEOUT, Backend, backend
from tests.tools.processes import cpu_seconds
from tests.tools.tiny_gguf import write_tiny
from tests.tools.waiting import eventually

QUEUE = 3


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 20 tokens a second, slow enough to observe a running request."""
    folder = tmp_path_factory.mktemp("slow")
    return write_tiny("count", folder / "slow.gguf", layers=12, embd=512)


@pytest.fixture
def single(tmp_path: Path, slow_model: Path) -> Iterator[Backend]:
    """One slot, and a queue of three."""
    with backend(f"unix:{tmp_path}/b.sock", tmp_path) as running:
        lines = ["parallel:1", f"max_queue:{QUEUE}"]
        assert running.load(slow_model, Options=lines, ContextSize=4096).success
        yield running


@pytest.fixture
async def stub(single: Backend) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(single.address) as channel:
        yield backend_pb2_grpc.BackendStub(channel)


def endless(prompt: str = "one two three") -> pb.PredictOptions:
    return pb.PredictOptions(Prompt=prompt, Tokens=3900, IgnoreEOS=True)


def short(prompt: str = "one two three") -> pb.PredictOptions:
    return pb.PredictOptions(Prompt=prompt, Tokens=1)


async def busy(stub: Any) -> bool:
    status = await stub.Status(pb.HealthMessage(), timeout=CALL_TIMEOUT)
    return bool(status.state == pb.StatusResponse.BUSY)


async def idle(stub: Any) -> bool:
    return not await busy(stub)


async def fill_queue(stub: Any) -> list[Any]:
    """Start requests until one is refused; return those that wait."""
    waiting = [stub.Predict(short(), timeout=CALL_TIMEOUT) for _ in range(QUEUE)]

    async def full() -> bool:
        # A probe that is accepted waits in the queue itself until it gives up.
        try:
            await stub.Predict(short(), timeout=0.05)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return False

    await eventually(full, timeout=CALL_TIMEOUT, what="the queue is full")
    return waiting


async def test_cancelling_a_stream_frees_its_slot(stub: Any) -> None:
    for _ in range(3):
        call = stub.PredictStream(endless())
        for _ in range(2):
            await call.read()
        call.cancel()
        reply = await stub.Predict(short(), timeout=CALL_TIMEOUT)
        assert reply.message == b" four"
    await eventually(lambda: idle(stub), timeout=CALL_TIMEOUT, what="the engine rests")


async def test_cancelling_a_whole_answer_frees_its_slot(stub: Any) -> None:
    call = stub.Predict(endless())
    await eventually(lambda: busy(stub), timeout=CALL_TIMEOUT, what="it has begun")
    call.cancel()
    reply = await stub.Predict(short(), timeout=CALL_TIMEOUT)
    assert reply.message == b" four"


async def test_a_deadline_ends_the_work(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Predict(endless(), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: idle(stub), timeout=CALL_TIMEOUT, what="the engine rests")


async def test_a_prompt_that_is_read_keeps_its_slot(single: Backend, stub: Any) -> None:
    """Reading a prompt cannot be interrupted, so no other request may take the slot meanwhile."""
    before = cpu_seconds(single.engine)
    call = stub.Predict(pb.PredictOptions(Prompt="one " * 500, Tokens=100))
    await eventually(
        lambda: cpu_seconds(single.engine) > before + 0.1,
        timeout=CALL_TIMEOUT,
        what="the engine reads",
    )
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await busy(stub)
    assert (await stub.Health(pb.HealthMessage(), timeout=CALL_TIMEOUT)).message == b"OK"
    reply = await stub.Predict(short(), timeout=CALL_TIMEOUT)
    assert reply.message == b" four"


async def test_a_queued_request_can_be_cancelled(stub: Any) -> None:
    running = stub.PredictStream(endless())
    await running.read()
    first, second, third = await fill_queue(stub)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second

    async def let_in() -> bool:
        try:
            await stub.Predict(short(), timeout=0.05)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return False

    await eventually(let_in, timeout=CALL_TIMEOUT, what="its place is free")
    running.cancel()
    assert (await first).message == (await third).message == b" four"


async def test_a_full_queue_says_so(stub: Any) -> None:
    running = stub.PredictStream(endless())
    await running.read()
    waiting = await fill_queue(stub)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Predict(short(), timeout=CALL_TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"{QUEUE} requests wait" in (caught.value.details() or "")
    running.cancel()
    for call in waiting:
        assert (await call).message == b" four"


async def test_first_come_first_served(stub: Any) -> None:
    running = stub.PredictStream(endless())
    await running.read()
    order: list[int] = []

    async def ask(number: int) -> None:
        await stub.Predict(short(), timeout=CALL_TIMEOUT)
        order.append(number)

    tasks = []
    for number in range(QUEUE):
        tasks.append(asyncio.create_task(ask(number)))
        # One after the other: each is accepted before the next is sent.
        assert await busy(stub)
    running.cancel()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]


async def test_free_ends_running_and_waiting_requests(stub: Any, slow_model: Path) -> None:
    running = stub.PredictStream(endless())
    await running.read()
    waiting = stub.Predict(short())
    whole = stub.Predict(endless())
    assert await busy(stub)
    assert (await stub.Free(pb.HealthMessage(), timeout=2)).success
    for call in (waiting, whole):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() in (
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.FAILED_PRECONDITION,  # it came after the model was unloaded
        )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await running.read() is not grpc.aio.EOF:
            pass
    assert caught.value.code() is grpc.StatusCode.ABORTED
    request = pb.ModelOptions(ModelFile=str(slow_model))
    assert (await stub.LoadModel(request, timeout=CALL_TIMEOUT)).success
    assert (await stub.Predict(short(), timeout=CALL_TIMEOUT)).message == b" four"


async def test_free_does_not_wait_for_a_prompt_to_be_read(stub: Any) -> None:
    call = stub.Predict(pb.PredictOptions(Prompt="one " * 2000, Tokens=1))
    await eventually(lambda: busy(stub), timeout=CALL_TIMEOUT, what="it has begun")
    assert (await stub.Free(pb.HealthMessage(), timeout=2)).success
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_it_answers_while_it_loads(tmp_path: Path, slow_model: Path) -> None:
    with backend(f"unix:{tmp_path}/b.sock", tmp_path) as running:
        async with grpc.aio.insecure_channel(running.address) as channel:
            stub = backend_pb2_grpc.BackendStub(channel)
            loop = asyncio.get_running_loop()
            # Clearing the memory of a large context makes the load long enough to observe.
            request = pb.ModelOptions(ModelFile=str(slow_model), ContextSize=20000)
            begun = loop.time()
            load = asyncio.ensure_future(stub.LoadModel(request, timeout=CALL_TIMEOUT))
            slowest = 0.0
            while not load.done():
                asked = loop.time()
                await stub.Health(pb.HealthMessage(), timeout=CALL_TIMEOUT)
                slowest = max(slowest, loop.time() - asked)
            assert (await load).success
            assert slowest < (loop.time() - begun) / 2


async def test_a_slow_reader_gets_everything(stub: Any) -> None:
    """More is generated than the buffers in between can hold, and none of it is lost."""
    call = stub.PredictStream(pb.PredictOptions(Prompt="one", Tokens=60, IgnoreEOS=True))
    words = []
    async for reply in call:
        words += reply.message.decode().split()
        await stub.Health(pb.HealthMessage())
    assert len(words) == 60
    assert words[:3] == ["two", "three", "four"]
