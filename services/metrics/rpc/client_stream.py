"""A client's stream of messages, which ends for us when we have to stop, and not before all is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

_Message = TypeVar("_Message")


async def until_stopping(
    messages: AsyncIterator[_Message], stopping: asyncio.Event, *, quiet: float
) -> AsyncIterator[_Message]:
    """Yield the messages to their end; once `stopping` is set, to the first pause of `quiet` seconds.

    A reporter may hold its stream open for days. It must not hold up a stop, and what it has sent
    already must be counted.
    """
    stop = asyncio.ensure_future(stopping.wait())
    arriving: asyncio.Future[_Message] | None = None
    try:
        while True:
            arriving = asyncio.ensure_future(anext(messages))
            await asyncio.wait({arriving, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not arriving.done():
                await asyncio.wait({arriving}, timeout=quiet)
                if not arriving.done():
                    return
            try:
                message = arriving.result()
            except StopAsyncIteration:
                return
            yield message
    finally:
        stop.cancel()
        if arriving is not None:
            arriving.cancel()
