"""Pushes all values to another collector: at intervals, on demand, and once more at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from services.common.errors import CorralError
from services.common.process.logging import get_logger

_log = get_logger(__name__)


class Forwarding:
    """An async context manager that pushes at intervals while entered, and once more on exit.

    Totals are pushed, so a failed push loses nothing: the next one includes everything.
    """

    def __init__(self, push: Callable[[], Awaitable[None]], *, interval: float) -> None:
        """`push` is called every `interval` seconds; it MUST have a deadline and raise only CorralError."""
        self._push = push
        self._interval = interval
        self._closing = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    async def flush(self) -> None:
        """Push the current values, after a push in progress has ended. Raises CorralError."""
        async with self._turn:
            await self._push()
            self._worked()

    async def __aenter__(self) -> Self:
        """Start pushing."""
        self._task = asyncio.create_task(self._run(), name="metrics forwarding")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Push the last values."""
        self._closing.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._closing.wait()
            try:
                await self.flush()
            except CorralError as error:
                if not self._failing or self._closing.is_set():
                    _log.warning("metrics cannot be forwarded", error=str(error))
                self._failing = True
            if self._closing.is_set():
                return

    def _worked(self) -> None:
        if self._failing:
            _log.info("metrics are forwarded again")
        self._failing = False
