"""The streams of a well-behaved backend."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import grpc

from corral.backend import backend_pb2 as pb

from . import words
from .behaviour import Behaviour
from .errors import Refused
from .senses import transcript
from .stores import Jobs

Stream = Callable[[Any, Behaviour], AsyncIterator[Any]]
"""Called with an iterator of requests and the behaviour."""

_FRAMES = 10


def server(jobs: Jobs) -> Mapping[str, Callable[[Any, Behaviour], Iterator[Any]]]:
    """Return the streams that answer one request, by the RPC's name."""

    def fine_tune(request: Any, _: Behaviour) -> Iterator[Any]:
        ended = "stopped" if jobs.stopped(request.job_id) else "completed"
        for step in range(1, Jobs.STEPS + 1):
            yield pb.FineTuneProgressUpdate(
                job_id=request.job_id,
                current_step=step,
                total_steps=Jobs.STEPS,
                loss=1 / step,
                progress_percent=100 * step / Jobs.STEPS,
                status="training" if step < Jobs.STEPS else ended,
            )

    def quantization(request: Any, _: Behaviour) -> Iterator[Any]:
        ended = "stopped" if jobs.stopped(request.job_id) else "completed"
        for step in range(1, Jobs.STEPS + 1):
            yield pb.QuantizationProgressUpdate(
                job_id=request.job_id,
                progress_percent=100 * step / Jobs.STEPS,
                status="quantizing" if step < Jobs.STEPS else ended,
            )

    return {
        "PredictStream": predict,
        "AudioTranscriptionStream": transcribe,
        "TTSStream": speak,
        "FineTuneProgress": fine_tune,
        "QuantizationProgress": quantization,
    }


def spoken(request: Any) -> str:
    """Return the prompt, or the last message of a chat."""
    if request.UseTokenizerTemplate and request.Messages:
        return str(request.Messages[-1].content)
    return str(request.Prompt)


def predict(request: Any, how: Behaviour) -> Iterator[Any]:
    """Repeat the prompt, one word per message; numbers, if it is empty."""
    said = words.pieces(spoken(request)) if how.echo == "prompt" else []
    count = request.Tokens if request.Tokens > 0 else how.tokens or len(said)
    pieces = itertools.cycle(said) if said else (f"{number} " for number in itertools.count())
    for number, piece in enumerate(itertools.islice(pieces, count), start=1):
        yield pb.Reply(message=piece.encode(), tokens=number, prompt_tokens=len(said))


def transcribe(request: Any, _: Behaviour) -> Iterator[Any]:
    """Send the words of a transcript, then the whole text."""
    result = transcript(request.dst, request.language)
    for at, word in enumerate(result.segments[0].words):
        yield pb.TranscriptStreamResponse(delta=f" {word.text}" if at else word.text)
    yield pb.TranscriptStreamResponse(final_result=result)


def speak(request: Any, _: Behaviour) -> Iterator[Any]:
    """Send the format, then the samples."""
    yield pb.Reply(message=json.dumps({"sample_rate": words.RATE}).encode())
    samples = words.sound(request.text)
    size = words.RATE // _FRAMES * 2
    for at in range(0, len(samples), size):
        yield pb.Reply(audio=samples[at : at + size])


async def transcribe_live(requests: Any, _: Behaviour) -> AsyncIterator[Any]:
    """Send the length of each piece of audio."""
    received: list[str] = []
    language: str | None = None
    async for request in requests:
        if request.WhichOneof("payload") == "config":
            language = request.config.language
            yield pb.TranscriptLiveResponse(ready=True)
            continue
        if language is None:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the first request holds no config")
        received.append(f"{len(request.audio.pcm)} samples ")
        yield pb.TranscriptLiveResponse(delta=received[-1])
    final = pb.TranscriptResult(text="".join(received), language=language or "en", eou=True)
    yield pb.TranscriptLiveResponse(final_result=final)


async def transform(requests: Any, _: Behaviour) -> AsyncIterator[Any]:
    """Send every frame back."""
    number = 0
    async for request in requests:
        if request.WhichOneof("payload") == "config":
            number = 0 if request.config.reset else number
            continue
        yield pb.AudioTransformFrameResponse(pcm=request.frame.audio_pcm, frame_index=number)
        number += 1


async def converse(requests: Any, _: Behaviour) -> AsyncIterator[Any]:
    """Echo the audio when the user's turn ends."""
    rate, received, sequence = words.RATE, b"", 0

    def event(name: str, **more: Any) -> Any:
        nonlocal sequence
        sequence += 1
        return pb.AudioToAudioResponse(event=name, sequence=sequence, **more)

    async for request in requests:
        ends = False
        match request.WhichOneof("payload"):
            case "config":
                rate = request.config.output_sample_rate or rate
                received = b"" if request.config.reset else received
            case "frame":
                received += request.frame.pcm
                ends = request.frame.end_of_input
            case "control":
                ends = request.control.event == "input_audio_buffer.commit"
        if ends:
            text = json.dumps({"delta": f"{len(received) // 2} samples"}).encode()
            yield event("response.audio_transcript.delta", meta=text)
            yield event("response.audio.delta", pcm=received, sample_rate=rate)
            yield event("response.done")
            received = b""


async def forward(requests: Any, _: Behaviour) -> AsyncIterator[Any]:
    """Answer like an HTTP server that echoes the request's body."""
    begun = False
    async for request in requests:
        if not begun:
            begun = True
            method = request.method or "POST"
            headers = [pb.ForwardHeader(name="fake-request", value=f"{method} {request.path}")]
            yield pb.ForwardReply(status=200, headers=headers, body_chunk=request.body_chunk)
        elif request.body_chunk:
            yield pb.ForwardReply(body_chunk=request.body_chunk)
    if not begun:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "there was no request")


BIDIRECTIONAL: Mapping[str, Stream] = {
    "AudioTranscriptionLive": transcribe_live,
    "AudioTransformStream": transform,
    "AudioToAudioStream": converse,
    "Forward": forward,
}
