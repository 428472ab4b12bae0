"""The reservation of one model: requested before each start, and held while it is loaded."""

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
from services.loader.scheduling.scheduler import RoomRequest

from .dependencies import SupervisorDependencies

_log = get_logger(__name__)


class ModelReservation:
    """Asks the scheduler for a reservation; the answer is posted as an event."""

    def __init__(
        self, name: str, dependencies: SupervisorDependencies, post: Callable[[Event], None]
    ) -> None:
        """`post` is called with the events that answer a request."""
        self.current = Reservation()
        """The memory that the model was granted, or asks for."""
        self.counts = True
        """Whether the model counts towards the limit on active models."""
        self._name = name
        self._scheduler = dependencies.scheduler
        self._ledger = dependencies.ledger
        self._backends = dependencies.backends
        self._post = post
        self._asked = 0.0
        """When the first candidate of the round in progress asked, by the monotonic clock."""

    @property
    def waits_for(self) -> str:
        """What the model waits for before it can load, for people; empty if it does not wait."""
        return self._scheduler.waits_for(self._name)

    def taken_by(self, instance: Instance, reservation: Reservation) -> None:
        """Set the reservation of an adopted instance."""
        self.current, self.counts = reservation, not instance.backend.external

    async def estimate(
        self, entry: ModelEntry, candidate: str, *, more: bool
    ) -> tuple[Reservation, bool]:
        """Return the reservation for a start with this backend, and whether it counts towards the limit on
        active models. Never raises."""
        try:
            backend = self._backends.find(candidate)
            needs = await asyncio.to_thread(self._ledger.reserve, entry, backend, more=more)
            return needs, not backend.external
        except CorralError:
            pass  # the start will fail with the same error
        except Exception:  # noqa: BLE001 - an unexpected error must not leave calls waiting
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
        """Ask for the reservation that `estimate` returned; True if it does not fit now.

        Posts `Granted` or `Refused`, perhaps before this returns. `first`: this is the first candidate
        of the round to ask; later ones keep the time since which the first has waited.
        """
        self.current, self.counts = needs
        if first:
            self._asked = time.monotonic()

        def refused(error: CorralError) -> None:
            self._post(Refused(generation, Failure(candidate, error)))

        request = RoomRequest(
            self._name,
            self.current.memory,
            granted=lambda: self._post(Granted(generation)),
            refused=refused,
            counts=self.counts,
            groups=frozenset(entry.config.concurrency_groups),
            asked=self._asked,
        )
        self._scheduler.ask(request)
        return self._scheduler.position(self._name) > 0
