"""Background tasks, and waiting for a condition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from services.common.process.logging import get_logger

from .errors import DeadlineError

_log = get_logger(__name__)
_T = TypeVar("_T")


class Background:
    """A set of named tasks: failures are logged at once, and `close` cancels and awaits all."""

    def __init__(self) -> None:
        """Start with no task."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def spawn(self, work: Coroutine[Any, Any, _T], *, name: str) -> asyncio.Task[_T]:
        """Start a named task. It need not be awaited: a failure is logged."""
        if self._closed:
            work.close()
            raise RuntimeError(f"cannot start {name!r}: these tasks are closed")
        task = asyncio.get_running_loop().create_task(work, name=name)
        # The loop holds only weak references: without this, a waiting task could be garbage-collected.
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def __len__(self) -> int:
        """Return the number of running tasks."""
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended. Idempotent."""
        self._closed = True
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # The callbacks that empty the set run one iteration of the loop after the tasks end.
            self._tasks.difference_update(tasks)

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background task failed", task=task.get_name(), exc_info=error)


async def wait_until(
    condition: Callable[[], bool | Awaitable[bool]],
    *,
    timeout: float,
    what: str,
    interval: float = 0.01,
) -> None:
    """Poll until the condition holds; raise DeadlineError that names `what` after `timeout` seconds.

    For conditions without an event to wait for (a file, another process).
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if (await answer) if isinstance(answer, Awaitable) else answer:
            return
        if (left := deadline - time.monotonic()) <= 0:
            raise DeadlineError(f"{what} did not come true within {timeout:g} s")
        await asyncio.sleep(min(interval, left))
