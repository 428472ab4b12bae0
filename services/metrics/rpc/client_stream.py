"""Reading a client's stream so that a stop ends it, and loses nothing that was already sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

_Message = TypeVar("_Message")


async def until_stopping(
    messages: AsyncIterator[_Message], stopping: asyncio.Event, *, quiet: float
) -> AsyncIterator[_Message]:
    """Yield the messages to their end; once `stopping` is set, to the first pause of `quiet` seconds.

    A reporter may keep its stream open for days. That must not delay a stop, and messages that were
    already sent must be counted.
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
