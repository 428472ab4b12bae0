"""Wrappers around streams of messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

_T = TypeVar("_T")


class Counted:
    """Counts the requests that a handler reads."""

    __slots__ = ("_requests", "count")

    def __init__(self, requests: Any) -> None:
        """`requests`: the stream to read."""
        # Not iterated yet: grpc.aio creates a generator then, and if the handler never reads it, Python
        # warns that it was never awaited.
        self._requests = requests
        self.count = 0

    def __aiter__(self) -> Counted:
        """Return itself."""
        return self

    async def __anext__(self) -> Any:
        """Return the next request."""
        request = await self._requests.__anext__()
        self.count += 1
        return request


class Until:
    """A stream that ends when an event is set, as if the client had closed its side."""

    __slots__ = ("_end", "_requests")

    def __init__(self, requests: Any, end: asyncio.Event) -> None:
        """`requests`: the stream to read; `end`: ends it."""
        self._requests = requests
        self._end = end

    def __aiter__(self) -> Until:
        """Return itself."""
        return self

    async def __anext__(self) -> Any:
        """Return the next request, unless the end comes first."""
        request = asyncio.ensure_future(self._requests.__anext__())
        end = asyncio.ensure_future(self._end.wait())
        try:
            await asyncio.wait({request, end}, return_when=asyncio.FIRST_COMPLETED)
            if request.done():
                return request.result()
            raise StopAsyncIteration
        finally:
            end.cancel()
            if request.cancel():
                # The caller may close the requests next; no read may still be running then.
                await asyncio.wait({request})


async def until(end: asyncio.Event, items: AsyncGenerator[_T, None]) -> AsyncIterator[_T]:
    """Yield the items until `end` is set: for endless responses that a stop must end."""
    try:
        async for item in Until(items, end):
            yield item
    finally:
        await items.aclose()
