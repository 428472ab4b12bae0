"""The room of one model: what it was granted, and what it asks for before each start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from services.common.errors import CorralError
from services.common.process.logging import get_logger
from services.loader.instances.instance import Instance
from services.loader.lifecycle.events import Event, Failure, Granted, Refused
from services.loader.memory.reservation import Reservation
from services.loader.models.catalog import ModelEntry
from services.loader.scheduling.scheduler import Wish

from .dependencies import Services

_log = get_logger(__name__)


class Room:
    """Asks the scheduler; what comes of it is posted as an event."""

    def __init__(self, name: str, services: Services, post: Callable[[Event], None]) -> None:
        """Begin without any."""
        self.reservation = Reservation()
        """The memory it was granted, or asks for."""
        self.counts = True
        """Whether it takes one of the places for active models."""
        self._name = name
        self._services = services
        self._post = post
        self._asked = 0.0
        """When the round in progress asked first; by the monotonic clock."""

    def taken_by(self, instance: Instance, reservation: Reservation) -> None:
        """Take note of the room of an instance that runs already."""
        self.reservation, self.counts = reservation, not instance.backend.external

    async def estimate(
        self, entry: ModelEntry, candidate: str, *, more: bool
    ) -> tuple[Reservation, bool]:
        """Return what a start with this backend needs, and whether it takes a place. Never raises."""
        try:
            needs = await asyncio.to_thread(self._services.estimate, entry, candidate, more)
            return needs, not self._services.find_backend(candidate).external
        except CorralError:
            pass  # the start will say what is wrong
        except Exception:  # noqa: BLE001 - whatever it was, nobody must wait for it
            _log.exception("what a model needs is not known", model=self._name, backend=candidate)
        return Reservation(), True

    def ask(
        self,
        needs: tuple[Reservation, bool],
        entry: ModelEntry,
        candidate: str,
        *,
        generation: int,
        first: bool,
    ) -> bool:
        """Ask for what `estimate` returned; True if there is no room now.

        Posts `Granted` or `Refused`, perhaps before this returns. `first`: no other candidate of the
        round has asked before; the next one goes on waiting where the last one stood.
        """
        self.reservation, self.counts = needs
        if first:
            self._asked = time.monotonic()

        def refused(error: CorralError) -> None:
            self._post(Refused(generation, Failure(candidate, error)))

        wish = Wish(
            self._name,
            self.reservation.memory,
            granted=lambda: self._post(Granted(generation)),
            refused=refused,
            counts=self.counts,
            groups=frozenset(entry.config.concurrency_groups),
            asked=self._asked,
        )
        self._services.scheduler.ask(wish)
        return self._services.scheduler.position(self._name) > 0
