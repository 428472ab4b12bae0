"""The calls and leases on one instance: how many there are, and when the last one ended."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

CALLS: Final = 64
"""Durations of calls that are kept: enough that one in ten is no accident, few enough to follow a change."""


@dataclass(slots=True, eq=False)
class CallCounts:
    """Counts for one instance. Only the methods here change them."""

    active: int = 0
    """Calls in progress."""
    total: int = 0
    """Calls begun so far, direct leases included."""
    holds: int = 0
    """Leases that keep the instance loaded: all except those of probes."""
    direct: int = 0
    """Leases of clients that call the backend themselves; each holds, and none counts as an active call."""
    last_used: float | None = None
    """When a call last began or ended, in seconds since the epoch."""
    idle_since: float = 0.0
    """When the last call ended, or the model was loaded; by the monotonic clock."""
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=CALLS))
    """Seconds that the last calls took."""

    def record_durations_in(self, durations: deque[float]) -> None:
        """Share the durations with those of earlier instances of the model."""
        self.durations = durations

    def mark_loaded(self) -> float:
        """Begin the idle time now; return the time by the monotonic clock."""
        self.idle_since = now = time.monotonic()
        return now

    def mark_used(self) -> float:
        """Begin the idle time again; return the time by the monotonic clock."""
        self.last_used = time.time()
        return self.mark_loaded()

    def hold(self, count: int = 1) -> None:
        """Keep the instance loaded for `count` more leases."""
        self.holds += count

    def let_go(self, count: int = 1) -> None:
        """End `count` holds."""
        self.holds -= count

    def begin(self, count: int = 1, *, counted: int = 0) -> None:
        """Count calls that begin; `counted` of them are in the total already."""
        self.active += count
        self.total += count - counted
        self.last_used = time.time()

    def end(self, count: int = 1) -> None:
        """Count calls that ended."""
        self.active -= count

    def end_one(self, began: float) -> None:
        """Count a call that ended and its duration; it began at `began` by the monotonic clock."""
        self.active -= 1
        self.durations.append(self.mark_used() - began)

    def open_direct(self) -> None:
        """Count a direct lease; it counts as a call in the total."""
        self.direct += 1
        self.total += 1
        self.mark_used()

    def close_direct(self) -> None:
        """Count a direct lease that ended."""
        self.direct -= 1
