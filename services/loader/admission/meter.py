"""How many calls may run at once, and how many may wait: for one model, and for all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from services.common.errors import CorralError, QueueFullError
from services.loader.backends.catalog import Backend
from services.loader.models.catalog import ModelEntry

from .fair_queue import FairQueue, Ticket
from .wait_estimate import UNKNOWN


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call, and what they want of a wait."""

    client: str = ""
    """Whoever shares this shares one turn among those who wait."""
    deadline: float | None = None
    """When the answer is of no use any more, by the monotonic clock; None for never."""
    queued: Callable[[int], None] | None = None
    """Called once if the call has to wait in a queue, with its position: 1 is the next. Must not raise."""


ANYONE = Caller()


class Queued(Ticket, Protocol):
    """A call that waits."""

    def refuse(self, error: CorralError) -> None:
        """Take it out of its queue, and raise the error in it."""
        ...


@dataclass(slots=True)
class CallMeter:
    """Counts the calls over all models, and refuses those above the ceiling."""

    ceiling: Callable[[], int]
    running: int = 0
    queue: FairQueue[Queued] = field(default_factory=FairQueue)
    """The calls that wait, for whatever model."""

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return self.queue.length

    @property
    def total(self) -> int:
        """Calls in progress and waiting."""
        return self.running + self.queue.length

    @property
    def full(self) -> bool:
        """Whether one more would be too many."""
        return self.running + self.queue.length >= self.ceiling()

    def check(self, client: str = "", *, retry_after: float = UNKNOWN) -> None:
        """Raise QueueFullError if one more would be too many, and none of a greedier client's waits."""
        if self.full and self.queue.crowding(client) is None:
            raise self._refusal(retry_after)

    def make_way(self, client: str = "", *, retry_after: float = UNKNOWN) -> None:
        """Let one more in: if it is one too many, in the place of one of the client that has most of those
        that wait. Raises QueueFullError if that is the newcomer's own."""
        if not self.full:
            return
        refused = self._refusal(retry_after)
        greedy = self.queue.crowding(client)
        if greedy is None:
            raise refused
        greedy.refuse(refused)

    def _refusal(self, retry_after: float) -> QueueFullError:
        return QueueFullError(
            f"the loader has {self.total} calls in progress and waiting, the maximum"
            " (max_concurrent_backend_requests); retry later",
            retry_after=retry_after,
            metadata={"queue_length": str(self.waiting)},
        )


def calls_at_once(entry: ModelEntry | None, backend: Backend | None) -> int:
    """Return how many calls a model takes at once; 0 means no limit.

    Its configuration decides (`limits.max_concurrent`, else `parallel:N` among its options), then the
    backend's manifest.
    """
    if entry is not None and (configured := entry.config.concurrency):
        return configured
    return backend.concurrency if backend is not None else 0
