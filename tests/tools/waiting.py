"""Poll a condition that has no event to wait for, with a deadline and a message."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

POLL = 0.01


async def eventually(
    condition: Callable[[], Any],
    *,
    timeout: float = 10.0,
    what: str = "the condition",
    interval: float = POLL,
) -> Any:
    """Wait until the condition is true and return its value; fail the test at the deadline.

    The condition may be a coroutine function.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout:g} s"
        await asyncio.sleep(interval)


def eventually_sync(
    condition: Callable[[], Any],
    *,
    timeout: float = 10.0,
    what: str = "the condition",
    interval: float = POLL,
) -> Any:
    """Do the same in a test without an event loop."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout:g} s"
        time.sleep(interval)
    return answer
