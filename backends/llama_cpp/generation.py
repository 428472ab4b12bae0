"""One generation: from the queue through the engine to replies."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from corral.backend import backend_pb2 as pb

from . import sampling
from .model import Model
from .replies import Delta, Usage, delta_of, reply_of
from .stops import Piece, StopMatcher


@asynccontextmanager
async def generate(
    model: Model, request: pb.PredictOptions
) -> AsyncIterator[AsyncIterator[pb.Reply]]:
    """Run a request; leaving the block early stops it.

    When the caller reads slowly, the engine's answer waits in the socket and then in the engine,
    which the request's token limit or the context size bounds.

    Raises:
        BackendError: on entry when the request or the moment is wrong, while iterating when the
            engine fails or the model is unloaded.
    """
    body = sampling.body(
        request,
        model.plan.triggers,
        strict_engine=not model.header.adds_space,
        reuse=model.plan.reuses(request.PromptCacheAll),
    )
    async with model.generation(body) as (slot, chunks):
        replies = _replies(model, request, slot, chunks)
        try:
            yield replies
        finally:
            await replies.aclose()


async def _replies(
    model: Model, request: pb.PredictOptions, slot: int, chunks: AsyncIterator[dict[str, object]]
) -> AsyncGenerator[pb.Reply, None]:
    chat = sampling.is_chat(request)
    usage = Usage()
    stops = StopMatcher(request.StopPrompts)
    try:
        async for chunk in chunks:
            usage.update(chunk)
            delta = delta_of(chunk)
            for passed in _matched(stops, delta) if delta else ():
                yield reply_of(passed, usage, chat)
            if stops.stopped:
                break
        for piece in stops.flush():
            yield reply_of(Delta(piece), usage, chat)
        yield usage.reply()
    finally:
        model.counters.finished(slot, usage)


def _matched(stops: StopMatcher, delta: Delta) -> list[Delta]:
    """The delta with its text passed through the stop words; the rest of it is never held back."""
    pieces = stops.feed(delta.piece) if delta.piece.text or delta.piece.logprobs else []
    if not delta.reasoning and not delta.tool_calls:
        return [Delta(piece) for piece in pieces]
    first, *others = pieces or [Piece("")]
    return [Delta(first, delta.reasoning, delta.tool_calls), *map(Delta, others)]
