"""The fake backend, well-behaved: every RPC, as the contract requires."""

from __future__ import annotations

import asyncio
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc
from services.common.rpc.status import DETAILS_KEY
from tests.tools.fake_backend import Running, serving

METHODS = pb.DESCRIPTOR.services_by_name["Backend"].methods
GOOD: dict[str, Any] = {
    "StoresSet": pb.StoresSetOptions(
        Keys=[pb.StoresKey(Floats=[1, 0])], Values=[pb.StoresValue(Bytes=b"v")]
    ),
    "StoresFind": pb.StoresFindOptions(Key=pb.StoresKey(Floats=[1, 0.1]), TopK=1),
    "AudioTranscriptionLive": pb.TranscriptLiveRequest(config=pb.TranscriptLiveConfig()),
    "StartFineTune": pb.FineTuneRequest(job_id="f"),
    "FineTuneProgress": pb.FineTuneProgressRequest(job_id="f"),
    "StartQuantization": pb.QuantizationRequest(job_id="q"),
    "QuantizationProgress": pb.QuantizationProgressRequest(job_id="q"),
    "PredictStream": pb.PredictOptions(Prompt="some words"),
    "Forward": pb.ForwardRequest(path="/x", body_chunk=b"body"),
    "AudioTransformStream": pb.AudioTransformFrameRequest(
        frame=pb.AudioTransformFrame(audio_pcm=b"pcm")
    ),
    "AudioToAudioStream": pb.AudioToAudioRequest(
        frame=pb.AudioToAudioFrame(pcm=b"\0\0", end_of_input=True)
    ),
}


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


async def ask(fake: Running, method: Any, **more: Any) -> list[Any]:
    """Make a valid call of any kind and return all its answers."""
    request = GOOD.get(method.name, message_factory.GetMessageClass(method.input_type)())
    call = getattr(fake.stub, method.name)
    if method.client_streaming:
        return await asyncio.to_thread(_ask_blocking, fake, method, request, **more)
    if method.server_streaming:
        return [message async for message in call(request, timeout=10, **more)]
    return [await call(request, timeout=10, **more)]


def _ask_blocking(fake: Running, method: Any, request: Any, **more: Any) -> list[Any]:
    # A stream client of grpc.aio may see its own INTERNAL instead of the server's status.
    with grpc.insecure_channel(fake.address) as channel:
        call = getattr(backend_pb2_grpc.BackendStub(channel), method.name)
        return list(call(iter([request]), timeout=10, **more))


async def test_every_rpc_answers_the_same_again(fake: Running) -> None:
    await fake.load()
    # A job's name can be used only once; and tokens are counted.
    changing = {"StartFineTune", "StartQuantization", "GetMetrics", "Status", "Free"}
    assert len(METHODS) == 52
    first = {method.name: await ask(fake, method) for method in METHODS if method.name != "Free"}
    assert all(first.values())
    for method in METHODS:
        if method.name not in changing:
            assert await ask(fake, method) == first[method.name], method.name


async def test_without_a_model(fake: Running) -> None:
    refused = set()
    for method in METHODS:
        if method.name == "LoadModel":
            continue
        try:
            await ask(fake, method)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert error.details() == "model not loaded"
            refused.add(method.name)
    assert len(refused) == 52 - len({"Health", "LoadModel", "Free", "Status"}) - 8
    await fake.load()
    await fake.stub.Predict(pb.PredictOptions())
    await fake.stub.Free(pb.HealthMessage())
    with pytest.raises(grpc.aio.AioRpcError, match="model not loaded"):
        await fake.stub.Predict(pb.PredictOptions())


async def test_every_rpc_fails_as_told_for_one_call(fake: Running) -> None:
    await fake.load()
    spared = {"Health", "LoadModel", "Free", "Status"}
    for method in METHODS:
        if method.name in spared:
            continue
        told = (("fake-set", "status=DATA_LOSS"), ("fake-echo-x", "y"))
        with pytest.raises(grpc.RpcError) as failed:
            await ask(fake, method, metadata=told)
        assert failed.value.code() is grpc.StatusCode.DATA_LOSS
        trailers: Any = failed.value.trailing_metadata()
        trailing = dict(trailers)
        assert trailing["fake-echo-x"] == "y" and b"TOLD_TO" in trailing[DETAILS_KEY]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await fake.stub.Predict(pb.PredictOptions(), metadata=(("fake-set", "no"),))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_text(fake: Running) -> None:
    await fake.load()
    request = pb.PredictOptions(Prompt="one two", Tokens=3)
    said = [reply async for reply in fake.stub.PredictStream(request)]
    assert [reply.message for reply in said] == [b"one", b" two", b"one"]
    assert said[-1].tokens == 3
    chat = pb.PredictOptions(UseTokenizerTemplate=True, Messages=[pb.Message(content="hi")])
    assert (await fake.stub.Predict(chat)).message == b"hi"
    ids = (await fake.stub.TokenizeString(pb.PredictOptions(Prompt="grüß"))).tokens
    assert (await fake.stub.Detokenize(pb.DetokenizeRequest(tokens=ids))).content == "grüß"
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await fake.stub.Detokenize(pb.DetokenizeRequest(tokens=[0xD800]))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    documents = ["a tree", "the red fox", "red"]
    answer = await fake.stub.Rerank(pb.RerankRequest(query="red fox", documents=documents, top_n=2))
    assert [result.index for result in answer.results] == [1, 2]


async def test_the_identity(fake: Running) -> None:
    await fake.load("m")
    await fake.stub.Predict(pb.PredictOptions(ModelIdentity="m"))
    for name, told in (("other", ()), ("m", (("fake-set", "identity=other"),))):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await fake.stub.Predict(pb.PredictOptions(ModelIdentity=name), metadata=told)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        assert "model identity mismatch" in (failed.value.details() or "")


async def test_files_are_written(fake: Running, tmp_path: Path) -> None:
    await fake.load()
    path = tmp_path / "out.wav"
    assert (await fake.stub.TTS(pb.TTSRequest(text="hello", dst=str(path)))).success
    with wave.open(str(path)) as sound:
        assert sound.getnframes() == 800
    image = tmp_path / "out.png"
    await fake.stub.GenerateImage(pb.GenerateImageRequest(positive_prompt="x", dst=str(image)))
    assert image.read_bytes().startswith(b"\x89PNG")
    lost = await fake.stub.TTS(pb.TTSRequest(text="x", dst=str(tmp_path / "none" / "x.wav")))
    assert not lost.success and "cannot write" in lost.message
    told = (("fake-set", "write_files=false"),)
    nothing = tmp_path / "nothing.wav"
    await fake.stub.TTS(pb.TTSRequest(text="x", dst=str(nothing)), metadata=told)
    assert not nothing.exists()


async def test_a_conversation_and_a_store(fake: Running) -> None:
    await fake.load()
    call = fake.stub.AudioToAudioStream()
    await call.write(pb.AudioToAudioRequest(config=pb.AudioToAudioConfig(output_sample_rate=8000)))
    for end in (False, True):
        frame = pb.AudioToAudioFrame(pcm=b"\1\0\2\0", end_of_input=end)
        await call.write(pb.AudioToAudioRequest(frame=frame))
    events = [await call.read() for _ in range(3)]
    assert [event.sequence for event in events] == [1, 2, 3]
    assert events[0].meta == b'{"delta": "4 samples"}'
    assert events[1].pcm == b"\1\0\2\0" * 2 and events[1].sample_rate == 8000
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF

    keys = [pb.StoresKey(Floats=[1, 0]), pb.StoresKey(Floats=[0, 1])]
    values = [pb.StoresValue(Bytes=b"east"), pb.StoresValue(Bytes=b"north")]
    await fake.stub.StoresSet(pb.StoresSetOptions(Keys=keys, Values=values))
    wanted = pb.StoresFindOptions(Key=pb.StoresKey(Floats=[0.1, 2]), TopK=1)
    found = await fake.stub.StoresFind(wanted)
    assert found.Values[0].Bytes == b"north" and 0.9 < found.Similarities[0] <= 1
    await fake.stub.StoresDelete(pb.StoresDeleteOptions(Keys=keys[1:]))
    assert (await fake.stub.StoresFind(wanted)).Values[0].Bytes == b"east"


async def test_a_job_that_is_stopped(fake: Running) -> None:
    start = pb.FineTuneRequest(job_id="j")
    assert (await fake.stub.StartFineTune(start)).success
    assert not (await fake.stub.StartFineTune(start)).success
    assert (await fake.stub.StopFineTune(pb.FineTuneStopRequest(job_id="j"))).success
    follow = fake.stub.FineTuneProgress(pb.FineTuneProgressRequest(job_id="j"))
    assert [update.status async for update in follow][-1] == "stopped"


async def test_it_ends_when_told_to(tmp_path: Path) -> None:
    socket = tmp_path / "s.sock"
    async with serving(tmp_path, "--addr", f"unix:{socket}") as fake:
        assert (await fake.stub.Health(pb.HealthMessage())).message == b"OK"
        fake.process.terminate()
        assert await fake.ended() == 0
        assert not socket.exists()
