"""One generation: from the queue through the engine to replies."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from corral.backend import backend_pb2 as pb

from . import sampling
from .engine import Chunk
from .handover import Handover
from .model import Model
from .replies import Delta, Usage, delta_of, reply_of
from .stops import Piece, StopMatcher

log = logging.getLogger(__name__)

# Chunks (tokens, mostly) that the engine may be ahead of a slow client.
AHEAD = 64


@asynccontextmanager
async def generate(
    model: Model, request: pb.PredictOptions
) -> AsyncIterator[AsyncIterator[pb.Reply]]:
    """Run a request; leaving the block early stops it.

    The slot and the model stay taken until the engine's thread has returned, also when the
    caller is long gone: a prompt that is being read can not be interrupted.

    Raises:
        BackendError: on entry when the request or the moment is wrong, while iterating when the
            engine fails or the model is unloaded.
    """
    body = sampling.body(request, model.plan.triggers)
    slot = await model.admission.acquire()
    handover: Handover[Chunk] = Handover(asyncio.get_running_loop(), AHEAD)
    model.submit(slot, handover, lambda: model.engine.generate(body, handover.put))
    replies = _replies(model, request, handover, slot)
    try:
        yield replies
    finally:
        handover.cancel()
        await replies.aclose()


async def _replies(
    model: Model, request: pb.PredictOptions, handover: Handover[Chunk], slot: int
) -> AsyncGenerator[pb.Reply, None]:
    chat = sampling.is_chat(request)
    usage = Usage()
    stops = StopMatcher(request.StopPrompts)
    try:
        while not stops.stopped and (batch := await handover.take()):
            for chunk in batch:
                usage.update(chunk)
                delta = delta_of(chunk)
                if delta is None:
                    continue
                for passed in _matched(stops, delta):
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
    rest = bool(delta.reasoning or delta.tool_calls)
    pieces = stops.feed(delta.piece) if delta.piece.text or delta.piece.logprobs else []
    if not rest:
        return [Delta(piece) for piece in pieces]
    first, *others = pieces or [Piece("")]
    return [Delta(first, delta.reasoning, delta.tool_calls), *map(Delta, others)]
