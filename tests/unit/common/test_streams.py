from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from services.common.streams import until


async def test_until_closes_what_it_ends() -> None:
    end, closed = asyncio.Event(), asyncio.Event()

    async def items() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    seen = []
    async for item in until(end, items()):
        seen.append(item)
        asyncio.get_running_loop().call_later(0.01, end.set)
    assert seen == [1] and closed.is_set()
