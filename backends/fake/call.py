"""A call, and the slots that calls take."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .behaviour import METADATA, Script


class Call:
    """A call: its behaviour, and the resources that it holds."""

    __slots__ = ("context", "how", "memory", "metadata", "name", "slot", "worker")

    def __init__(self, name: str, context: Any, script: Script) -> None:
        """Raises BehaviourError for an invalid `fake-set`."""
        self.name = name
        self.context = context
        self.metadata: Sequence[tuple[str, Any]] = context.invocation_metadata() or ()
        self.how = script.now([value for key, value in self.metadata if key == METADATA])
        self.slot = False
        self.worker = False
        self.memory: bytearray | None = None


def allowed(metadata: Sequence[tuple[str, Any]], token: str) -> bool:
    """Whether a call has the process's token; without a token, all are allowed."""
    expected = f"Bearer {token}".encode()
    return not token or any(
        key == "authorization"
        and hmac.compare_digest(value if isinstance(value, bytes) else value.encode(), expected)
        for key, value in metadata
    )


class Slots:
    """Slots, taken first come first served; their number may change."""

    def __init__(self) -> None:
        """All slots are free."""
        self.taken = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self, limit: int) -> None:
        """Wait for a free slot and take it."""
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
        """Give the slot to the next call, or free it."""
        while self._waiting:
            place = self._waiting.pop(0)
            if not place.done():  # its call may just have been cancelled
                place.set_result(None)
                return
        self.taken -= 1
