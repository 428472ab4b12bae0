import asyncio
from collections.abc import AsyncIterator

from services.metrics.rpc.client_stream import until_stopping


async def messages(*items: int, then: asyncio.Event | None = None) -> AsyncIterator[int]:
    for item in items:
        yield item
    if then is not None:
        await then.wait()


async def test_a_stream_is_read_to_its_end() -> None:
    stream = until_stopping(messages(1, 2), asyncio.Event(), quiet=5)
    assert [item async for item in stream] == [1, 2]


async def test_a_stop_ends_a_silent_stream_after_what_was_sent() -> None:
    stopping = asyncio.Event()
    stopping.set()
    stream = until_stopping(messages(1, 2, then=asyncio.Event()), stopping, quiet=0.01)
    assert [item async for item in stream] == [1, 2]
