"""`corral.client` with a real loader and real processes: which route calls take, and how."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from corral.backend import backend_pb2 as pb
from corral.client import reach
from corral.loader.v1 import loader_pb2
from services.common.rpc.status import from_rpc_error
from tests.tools.direct_clients import (
    DIRECT,
    READY,
    active,
    aio_at,
    at,
    has_leases,
    in_thread,
    leases,
)
from tests.tools.loader_calls import FOREVER, begin, model, prompt
from tests.tools.processes import free_port
from tests.tools.running import LoaderUnderTest, eventually
from tests.tools.waiting import eventually_sync


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
        # The first call starts at once, whichever route is available.
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
            live: Any = backend.AudioTranscriptionLive(iter([_config(), _audio(3)]))
            assert [answer.ready or answer.delta for answer in live][:2] == [True, "3 samples "]
            assert backend.Health(pb.HealthMessage()).message == b"OK"
            with pytest.raises(grpc.RpcError) as refused:
                backend.Free(pb.HealthMessage())
            assert from_rpc_error(refused.value).reason == "CONTROL_PLANE_ONLY"
            eventually_sync(lambda: active(backend) == 0, what="the end of all calls")

    await in_thread(work)


async def test_every_kind_of_call_goes_direct_with_asyncio(running: LoaderUnderTest) -> None:
    async with aio_at(running) as backend:
        assert await backend.ready(READY)
        mine = (("my-key", "my-value"), ("authorization", "Bearer mine"))
        seen = (await backend.Predict(prompt("x"), metadata=mine)).message
        assert b"my-value" in seen and b"Bearer mine" not in seen
        stream = backend.PredictStream(pb.PredictOptions(Tokens=3))
        assert [reply.message async for reply in stream] == [b"0 ", b"1 ", b"2 "]
        live: Any = backend.AudioTranscriptionLive()
        await live.write(_config())
        assert (await live.read()).ready
        await live.done_writing()
        assert (await live.read()).final_result is not None
        assert await live.read() is grpc.aio.EOF
        endless = backend.PredictStream(FOREVER)
        await endless.read()
        endless.cancel()
        await eventually(lambda: active(backend) == 0, what="the end of all calls")


def _config() -> pb.TranscriptLiveRequest:
    return pb.TranscriptLiveRequest(config=pb.TranscriptLiveConfig(language="de"))


def _audio(samples: int) -> pb.TranscriptLiveRequest:
    return pb.TranscriptLiveRequest(audio=pb.TranscriptLiveAudio(pcm=[0.5] * samples))


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
    """As in a container, where the backend's socket does not exist."""
    await running.control.LoadModel(loader_pb2.LoadModelRequest(name="m"))
    address = (await model(running)).instances[0].address
    async with aio_at(running) as backend:
        backend._keeper._connect = _elsewhere(backend._keeper._connect)  # type: ignore[method-assign]
        assert not await backend.ready(READY)
        assert (await backend.Predict(prompt("x"), timeout=READY)).message
        await has_leases(running, 0)
        # The backend may have caused it, so the direct route is tried again soon.
        del backend._keeper._connect
        await eventually(lambda: backend.ready(READY), what="the direct way")
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


async def test_arguments_are_those_of_the_stub(running: LoaderUnderTest) -> None:
    mine = (("my-key", "my-value"),)

    def work() -> None:
        with at(running) as backend:
            assert backend.ready(READY)
            seen = backend.Predict(prompt("x"), 5.0, mine, None, True, grpc.Compression.Gzip)
            assert b"my-value" in seen.message
            assert b"my-value" in backend.Predict(request=prompt("x"), metadata=mine).message
            assert len(list(backend.PredictStream(request=pb.PredictOptions(Tokens=3)))) == 3
            live: Any = backend.AudioTranscriptionLive(
                request_iterator=iter([_config()]), timeout=5.0
            )
            assert next(live).ready

    await in_thread(work)
    async with aio_at(running) as backend:
        assert await backend.ready(READY)
        assert b"my-value" in (await backend.Predict(request=prompt("x"), metadata=mine)).message
        live: Any = backend.AudioTranscriptionLive(_later(_config()), 5.0, mine, None, True)
        assert (await live.read()).ready
        live.cancel()


async def _later(*requests: Any) -> AsyncIterator[Any]:
    for request in requests:
        yield request


async def test_a_timeout_holds_while_a_lease_is_waited_for(
    running: LoaderUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.behave("fake", load_seconds=9.0)
    monkeypatch.setattr(reach, "PATIENCE", 8.0)

    def work() -> float:
        with at(running) as backend:
            began = time.monotonic()
            with pytest.raises(grpc.RpcError) as failed:
                backend.Predict(prompt("x"), timeout=0.2)
            assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return time.monotonic() - began

    assert await in_thread(work) < 4
