"""Blocking work off the event loop, without leaving it running behind a cancelled caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def to_end(work: Callable[..., T], *args: object) -> T:
    """Run `work` in a thread; when cancelled, wait until it has ended before giving way.

    `asyncio.to_thread` gives way at once, and its thread goes on writing to a file that its owner has
    closed (or whose number is another file's by then).
    """
    future = asyncio.get_running_loop().run_in_executor(None, work, *args)
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        future.exception()
        raise asyncio.CancelledError
    return future.result()
