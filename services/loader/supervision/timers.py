"""Timers that post events, until they are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.loader.lifecycle.events import Event


class Timers:
    """The timers of one model."""

    def __init__(self, post: Callable[[Event], None]) -> None:
        """`post` is called with each event when it is due."""
        self._post = post
        self._timers: list[asyncio.TimerHandle] = []

    def later(self, delay: float, event: Event) -> None:
        """Post the event after `delay` seconds."""
        loop = asyncio.get_running_loop()
        self._timers = [timer for timer in self._timers if timer.when() > loop.time()]
        self._timers.append(loop.call_later(delay, self._post, event))

    def cancel(self) -> None:
        """Cancel all timers."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
