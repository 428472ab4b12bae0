"""A plain client of backend.proto gets the backend's answers unchanged through the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from corral.backend import backend_pb2 as pb
from corral.loader.v1 import loader_pb2
from services.common.rpc.status import from_rpc_error
from services.loader.gateway.methods import methods
from tests.tools.processes import free_port
from tests.tools.running import LoaderUnderTest, eventually

MODEL = (("corral-model", "m"),)


@pytest.fixture
async def running(loader: LoaderUnderTest) -> LoaderUnderTest:
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    loader.add_model("other", "fake")
    await loader.start()
    return loader


async def test_unary_both_ways(running: LoaderUnderTest) -> None:
    call = running.data.Predict(
        pb.PredictOptions(Prompt="hi"),
        metadata=(*MODEL, ("my-key", "my-value"), ("authorization", "Bearer mine")),
        timeout=30,
    )
    seen = json.loads((await call).message)
    assert seen["prompt"] == "hi"
    assert seen["metadata"]["my-key"] == "my-value"
    assert "corral-model" not in seen["metadata"]
    assert seen["metadata"]["authorization"] not in ("Bearer mine", "")
    assert 20 < seen["remaining"] <= 30
    assert ("fake-initial", "i") in list(await call.initial_metadata())
    trailing = list(await call.trailing_metadata())
    assert ("fake-trailing", "t") in trailing and ("fake-bin", b"\0\1") in trailing


async def test_server_stream(running: LoaderUnderTest) -> None:
    call = running.data.PredictStream(pb.PredictOptions(Tokens=5), metadata=MODEL)
    assert b"".join([reply.message async for reply in call]) == b"0 1 2 3 4 "
    assert ("fake-initial", "i") in list(await call.initial_metadata())
    assert ("fake-trailing", "t") in list(await call.trailing_metadata())


async def test_bidirectional_stream(running: LoaderUnderTest) -> None:
    call = running.data.AudioTranscriptionLive(metadata=MODEL)
    await call.write(pb.TranscriptLiveRequest(config=pb.TranscriptLiveConfig(language="de")))
    assert (await call.read()).ready
    for count in (3, 5):
        audio = pb.TranscriptLiveAudio(pcm=[0.5] * count)
        await call.write(pb.TranscriptLiveRequest(audio=audio))
        assert (await call.read()).delta == f"{count} samples "
    await call.done_writing()
    assert (await call.read()).final_result.text == "3 samples 5 samples "
    assert await call.read() is grpc.aio.EOF


async def test_client_stream_and_rpcs_of_newer_backends(running: LoaderUnderTest) -> None:
    async def three() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x"

    count: Any = running.channel.stream_unary("/backend.Backend/CountUploads")
    assert await count(three(), metadata=MODEL) == b"3"
    reverse: Any = running.channel.unary_unary("/backend.Backend/Reverse")
    assert await reverse(b"abc", metadata=MODEL) == b"cba"
    missing: Any = running.channel.unary_unary("/backend.Backend/NobodyHasThis")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await missing(b"", metadata=MODEL)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_backend_that_ends_a_call_early_says_why(running: LoaderUnderTest) -> None:
    """The client gets the backend's status although messages to the backend were in flight."""
    missing: Any = running.channel.unary_unary("/backend.Backend/NobodyHasThis")

    async def code() -> grpc.StatusCode:
        try:
            await missing(b"x" * 1000, metadata=MODEL)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    for _ in range(10):
        codes = await asyncio.gather(*(code() for _ in range(30)))
        assert set(codes) == {grpc.StatusCode.UNIMPLEMENTED}


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "NOT_FOUND", "INTERNAL", "UNAVAILABLE"])
async def test_the_backends_status_is_the_clients(running: LoaderUnderTest, code: str) -> None:
    unary = running.data.Predict(pb.PredictOptions(Prompt=f"fail:{code}"), metadata=MODEL)
    stream = running.data.PredictStream(
        pb.PredictOptions(Prompt=f"fail-after:{code}"), metadata=MODEL
    )
    with pytest.raises(grpc.aio.AioRpcError) as first:
        await unary
    received = []
    with pytest.raises(grpc.aio.AioRpcError) as second:
        async for reply in stream:
            received.append(reply.message)  # noqa: PERF401 - what came before the error counts
    assert received == [b"0 ", b"1 ", b"2 "]
    for failed in (first.value, second.value):
        assert failed.code().name == code and failed.details() == f"requested status {code}"
        trailing = dict(failed.trailing_metadata())
        assert b"TOLD_TO" in trailing["grpc-status-details-bin"]
        assert trailing["fake-trailing"] == "t"


async def test_cancellation_and_deadline_reach_the_backend(running: LoaderUnderTest) -> None:
    call = running.data.Predict(pb.PredictOptions(Prompt="wait"), metadata=MODEL)
    await eventually(lambda: busy(running), what="the call at the backend")
    call.cancel()
    await eventually(lambda: "cancelled" in running.notes("fake"), what="cancellation")
    stream = running.data.PredictStream(pb.PredictOptions(), metadata=MODEL)
    await stream.read()
    stream.cancel()
    await eventually(lambda: "stream cancelled" in running.notes("fake"), what="cancellation")
    await eventually(lambda: idle(running), what="the end of the leases")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.data.Predict(pb.PredictOptions(Prompt="wait"), metadata=MODEL, timeout=0.3)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: running.notes("fake").count("cancelled") == 2, what="the deadline")
    await eventually(lambda: idle(running), what="the end of the leases")


async def instance(running: LoaderUnderTest) -> loader_pb2.Instance:
    answer = await running.control.GetModel(loader_pb2.GetModelRequest(name="m"))
    # None while the first call is still starting it.
    return next(iter(answer.model.instances), loader_pb2.Instance())


async def busy(running: LoaderUnderTest) -> bool:
    return (await instance(running)).active_calls > 0


async def idle(running: LoaderUnderTest) -> bool:
    return (await instance(running)).active_calls == 0


async def test_the_identity_names_the_model_too(running: LoaderUnderTest) -> None:
    for identity, passed_on in (("m", ""), ("m.bin", "m.bin")):
        reply = await running.data.Predict(
            pb.PredictOptions(Prompt="x", ModelIdentity=identity, Images=["y" * 5000])
        )
        assert json.loads(reply.message)["identity"] == passed_on


async def test_a_name_that_is_not_ascii(running: LoaderUnderTest) -> None:
    running.add_model("münchen", "fake")
    named = (("corral-model-bin", "münchen".encode()),)
    reply = await running.data.Predict(pb.PredictOptions(Prompt="grüß"), metadata=named)
    assert json.loads(reply.message)["prompt"] == "grüß"
    for bad in (("corral-model-bin", b"\xff"), ("corral-model", " ")):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await running.data.Predict(pb.PredictOptions(), metadata=(bad,))
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_without_a_name(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    await loader.start()
    await loader.data.Predict(pb.PredictOptions(Prompt="only one"))
    loader.add_model("second", "fake")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await loader.data.Predict(pb.PredictOptions(Prompt="which?"))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "corral-model" in (failed.value.details() or "")
    assert from_rpc_error(failed.value).reason == "MODEL_NOT_NAMED"


async def test_probes_neither_load_nor_count(running: LoaderUnderTest) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.data.Health(pb.HealthMessage(), metadata=MODEL)
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert from_rpc_error(failed.value).reason == "MODEL_NOT_LOADED"
    assert running.notes("fake") == []
    await running.control.LoadModel(loader_pb2.LoadModelRequest(name="m"))
    assert (await running.data.Health(pb.HealthMessage(), metadata=MODEL)).message == b"OK"
    status = await running.data.Status(pb.HealthMessage(), metadata=MODEL)
    assert status.state == pb.StatusResponse.READY
    assert (await instance(running)).total_calls == 0
    await running.data.Predict(pb.PredictOptions(), metadata=MODEL)
    assert (await instance(running)).total_calls == 1


@pytest.mark.parametrize("name", ["LoadModel", "Free"])
async def test_the_control_plane_owns_loading(running: LoaderUnderTest, name: str) -> None:
    request = pb.ModelOptions() if name == "LoadModel" else pb.HealthMessage()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await getattr(running.data, name)(request, metadata=MODEL)
    assert from_rpc_error(failed.value).reason == "CONTROL_PLANE_ONLY"


def test_every_rpc_of_the_contract_is_passed_on() -> None:
    assert len(methods()) == 52
    assert {method.kind for method in methods().values()} >= {
        "unary_unary",
        "unary_stream",
        "stream_stream",
    }


async def test_an_external_backend_at_an_address(loader: LoaderUnderTest) -> None:
    """An external backend is not started; when it comes back, the next call reaches it."""
    folder = loader.add_backend("hidden")
    port = free_port()
    environment = {"PYTHONPATH": ":".join(path for path in __import__("sys").path if path)}

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            folder / "run.sh", "--addr", f"127.0.0.1:{port}", cwd=folder, env=environment
        )

    backend = await start()
    try:
        loader.add_model("m", "afar")
        await loader.start("--external-backend", f"afar=127.0.0.1:{port}")
        await loader.data.Predict(pb.PredictOptions(Prompt="x"), metadata=MODEL, timeout=10)
        assert (await instance(loader)).pid == 0
        backend.kill()
        await backend.wait()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await loader.data.Predict(pb.PredictOptions(Prompt="x"), metadata=MODEL, timeout=10)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        backend = await start()
        await loader.data.Predict(pb.PredictOptions(Prompt="x"), metadata=MODEL, timeout=10)
    finally:
        backend.kill()
        await backend.wait()
