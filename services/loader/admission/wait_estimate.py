"""Estimates how long calls wait, from the durations of a model's last calls and loads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from services.loader.instances.call_counts import CALLS

EVIDENCE: Final = 8
"""The least number of known calls before a call is refused for its deadline."""

LOADS: Final = 5
"""Load durations to remember."""

LOAD_EVIDENCE: Final = 2
"""The least number of known loads before a call is refused for a load: the first one reads the files
from disk, later ones from the page cache, which may be ten times as fast."""

QUICK: Final = 0.1
"""The quantile of call durations assumed as the least duration: one call in ten is faster."""

CERTAIN: Final = 0.75
"""The least duration of the next load, as a fraction of the fastest known one; caches differ."""

UNKNOWN: Final = 1.0
"""Seconds until a refused call may retry if no duration is known (LocalAI's value)."""

SOONEST: Final = 0.1
"""The shortest suggested retry, in seconds: sooner, a call would be refused more often than served."""

LATEST: Final = 60.0
"""The longest suggested retry, in seconds: nothing is known so far ahead."""


@dataclass(slots=True)
class CallDurations:
    """The durations of a model's last calls and loads, in seconds. Failed and cancelled calls count too."""

    calls: deque[float] = field(default_factory=lambda: deque(maxlen=CALLS))
    loads: deque[float] = field(default_factory=lambda: deque(maxlen=LOADS))

    @property
    def quick(self) -> float:
        """The duration that nearly every call exceeds; 0 with fewer than EVIDENCE calls."""
        if len(self.calls) < EVIDENCE:
            return 0.0
        return sorted(self.calls)[int(QUICK * len(self.calls))]

    @property
    def typical(self) -> float:
        """The median duration of the calls; 0 without calls."""
        return sorted(self.calls)[len(self.calls) // 2] if self.calls else 0.0

    @property
    def load(self) -> float:
        """The duration of the fastest of the last loads; 0 without loads."""
        return min(self.loads, default=0.0)


def at_least(pace: CallDurations, position: int, places: int, load_left: float) -> float:
    """Return the least seconds that the call at `position` (1 is the next) waits.

    Running calls may end at once, so the first `places` waiting calls may not wait at all. `places` is
    the number of slots, 0 for no limit; `load_left` the seconds left of the load, 0 if it is over.
    """
    rounds = (position - 1) // places if places else 0
    load = CERTAIN * load_left if len(pace.loads) >= LOAD_EVIDENCE else 0.0
    return load + (rounds * pace.quick if rounds else 0.0)


def expected(pace: CallDurations, position: int, places: int, load_left: float) -> float:
    """Return the expected seconds that the call at `position` waits; 0 if unknown."""
    return load_left + (position * pace.typical / places if places else 0.0)


def retry_after(wait: float) -> float:
    """Return the seconds until a refused call may retry; `wait` is its expected wait, 0 if unknown."""
    return min(max(wait, SOONEST), LATEST) if wait else UNKNOWN


@dataclass(slots=True)
class Stopwatch:
    """Adds up the time in which it runs; callers pass the current time."""

    since: float | None = None
    _before: float = 0.0

    def read(self, now: float) -> float:
        """Return the seconds for which the stopwatch has run."""
        return self._before + (now - self.since if self.since is not None else 0.0)

    def run(self, now: float, *, on: bool) -> None:
        """Start or stop the stopwatch. Idempotent."""
        if on and self.since is None:
            self.since = now
        elif not on and self.since is not None:
            self._before += now - self.since
            self.since = None
