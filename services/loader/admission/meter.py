"""The limits on running and waiting calls: per model, and over all models."""

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
    """The client of a call, its deadline, and its callback for a queued call."""

    client: str = ""
    """Waiting calls with the same client share one turn."""
    deadline: float | None = None
    """The call's deadline by the monotonic clock; None without one."""
    queued: Callable[[int], None] | None = None
    """Called once with the call's position if it has to wait in a queue: 1 is the next. Must not raise."""


ANYONE = Caller()


class Queued(Ticket, Protocol):
    """A waiting call."""

    def refuse(self, error: CorralError) -> None:
        """Remove the call from its queue, and raise the error in it."""
        ...


@dataclass(slots=True)
class CallMeter:
    """Counts the calls over all models, and refuses those above the ceiling."""

    ceiling: Callable[[], int]
    running: int = 0
    queue: FairQueue[Queued] = field(default_factory=FairQueue)
    """The waiting calls of all models."""

    @property
    def waiting(self) -> int:
        """The number of waiting calls."""
        return self.queue.length

    @property
    def total(self) -> int:
        """The number of calls in progress and waiting."""
        return self.running + self.queue.length

    @property
    def full(self) -> bool:
        """Whether another call would exceed the ceiling."""
        return self.running + self.queue.length >= self.ceiling()

    def check(self, client: str = "", *, retry_after: float = UNKNOWN) -> None:
        """Raise QueueFullError if the ceiling is reached and no client with more waiting calls can yield."""
        if self.full and self.queue.crowding(client) is None:
            raise self._refusal(retry_after)

    def make_way(self, client: str = "", *, retry_after: float = UNKNOWN) -> None:
        """Admit another call; at the ceiling, refuse a waiting call of the client with the most of them
        instead. Raises QueueFullError if that is the new call's own client."""
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

    Its configuration decides (`limits.max_concurrent`, otherwise `parallel:N` among its options), then
    the backend's manifest.
    """
    if entry is not None and (configured := entry.config.concurrency):
        return configured
    return backend.concurrency if backend is not None else 0
