"""One call, and the places that calls take."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .behaviour import METADATA, Script


class Call:
    """One call: how it is to be answered, and what it holds meanwhile."""

    __slots__ = ("context", "how", "memory", "metadata", "name", "slot", "worker")

    def __init__(self, name: str, context: Any, script: Script) -> None:
        """Raises BehaviourError for a `fake-set` that makes no sense."""
        self.name = name
        self.context = context
        self.metadata: Sequence[tuple[str, Any]] = context.invocation_metadata() or ()
        self.how = script.now([value for key, value in self.metadata if key == METADATA])
        self.slot = False
        self.worker = False
        self.memory: bytearray | None = None


def allowed(metadata: Sequence[tuple[str, Any]], token: str) -> bool:
    """Whether a call brought the token of this process; without one all are allowed."""
    expected = f"Bearer {token}".encode()
    return not token or any(
        key == "authorization"
        and hmac.compare_digest(value if isinstance(value, bytes) else value.encode(), expected)
        for key, value in metadata
    )


class Slots:
    """Places that are taken in the order of asking; how many there are may change."""

    def __init__(self) -> None:
        """Begin with all of them free."""
        self.taken = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self, limit: int) -> None:
        """Take a place, as soon as there is one."""
        if self.taken >= limit or self._waiting:
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self.give_back()
                else:
                    with suppress(ValueError):
                        self._waiting.remove(place)
                raise
            return
        self.taken += 1

    def give_back(self) -> None:
        """Hand the place on, or leave it empty."""
        while self._waiting:
            place = self._waiting.pop(0)
            if not place.done():  # its call may have been cancelled in this moment
                place.set_result(None)
                return
        self.taken -= 1
