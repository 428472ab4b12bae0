"""How many calls may run at once, and how many may wait: for one model, and for all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.common.errors import QueueFullError

from .backend_catalog import Backend
from .model_catalog import ModelEntry

_RETRY_AFTER = 1.0
"""Seconds until a refused call may try again, where the model's configuration says nothing (LocalAI's)."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call, and what they want of a wait."""

    client: str = ""
    """Whoever shares this shares one turn among those who wait."""
    deadline: float | None = None
    """When the answer is of no use any more, by the monotonic clock; None for never."""
    queued: Callable[[int], None] | None = None
    """Called once if the call has to wait in a queue, with its position: 1 is the next."""


ANYONE = Caller()


@dataclass(slots=True)
class CallMeter:
    """Counts the calls over all models, and refuses those above the ceiling."""

    ceiling: Callable[[], int]
    running: int = 0
    waiting: int = 0

    @property
    def total(self) -> int:
        """Calls in progress and waiting."""
        return self.running + self.waiting

    def check(self) -> None:
        """Raise QueueFullError if one more would be too many."""
        if self.total >= self.ceiling():
            raise QueueFullError(
                f"the loader has {self.total} calls in progress and waiting, which is as many as may"
                " (max_concurrent_backend_requests); retry later",
                retry_after=_RETRY_AFTER,
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


def retry_after(entry: ModelEntry | None) -> float:
    """Return after how many seconds a refused call may try again (`limits.retry_after_seconds`)."""
    configured = entry.config.limits.retry_after_seconds if entry is not None else 0
    return float(configured) or _RETRY_AFTER
