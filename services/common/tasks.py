"""Background tasks that are neither lost nor left behind, and waiting without bare sleeps."""

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
    """A set of named tasks: a failure is logged at once, closing cancels and awaits them all."""

    def __init__(self) -> None:
        """Start with no task."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def spawn(self, work: Coroutine[Any, Any, _T], *, name: str) -> asyncio.Task[_T]:
        """Start a task under a name; its failure is logged, and nobody has to await it."""
        if self._closed:
            work.close()
            raise RuntimeError(f"cannot start {name!r}: these tasks are closed")
        task = asyncio.get_running_loop().create_task(work, name=name)
        # The loop itself holds tasks weakly; without this one could vanish while it waits.
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def __len__(self) -> int:
        """Return how many tasks still run."""
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel what still runs and wait until it has ended. Idempotent."""
        self._closed = True
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # The callbacks that empty the set run one turn of the loop after the tasks end.
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
    """Wait until the condition holds; raise DeadlineError that names `what` after `timeout` seconds.

    For what gives no event to wait for (a file, a foreign process). Where there is an event, wait for
    that instead.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if (await answer) if isinstance(answer, Awaitable) else answer:
            return
        if (left := deadline - time.monotonic()) <= 0:
            raise DeadlineError(f"{what} did not come true within {timeout:g} s")
        await asyncio.sleep(min(interval, left))
