"""How long a model's calls and loads take, judged by the last ones, and what that means for whoever waits."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from services.loader.instances.call_counts import CALLS

EVIDENCE: Final = 8
"""Calls before which no call is refused for its deadline."""

LOADS: Final = 5
"""Loads that are remembered."""

LOAD_EVIDENCE: Final = 2
"""Loads before which no call is refused for a load: the first one reads the files from disk, later ones from
the page cache, which may be ten times as quick."""

QUICK: Final = 0.1
"""The quantile of the calls' durations that is taken for granted: so many in ten are quicker still."""

CERTAIN: Final = 0.75
"""The part of the quickest known load that the next one takes at least; caches differ from load to load."""

UNKNOWN: Final = 1.0
"""Seconds until a refused call may try again, where nothing is known (LocalAI's)."""

SOONEST: Final = 0.1
"""Seconds: no refused call is told to come back sooner, or it would be refused more often than served."""

LATEST: Final = 60.0
"""Seconds: no refused call is told to come back later, as nothing is known of so far ahead."""


@dataclass(slots=True)
class CallDurations:
    """The durations of a model's last calls and loads, in seconds. Failed and cancelled calls count too."""

    calls: deque[float] = field(default_factory=lambda: deque(maxlen=CALLS))
    loads: deque[float] = field(default_factory=lambda: deque(maxlen=LOADS))

    @property
    def quick(self) -> float:
        """Return what nearly every call takes at least; 0 without evidence."""
        if len(self.calls) < EVIDENCE:
            return 0.0
        return sorted(self.calls)[int(QUICK * len(self.calls))]

    @property
    def typical(self) -> float:
        """Return the median of the calls; 0 if there was none."""
        return sorted(self.calls)[len(self.calls) // 2] if self.calls else 0.0

    @property
    def load(self) -> float:
        """Return the quickest of the last loads; 0 if there was none."""
        return min(self.loads, default=0.0)


def at_least(pace: CallDurations, position: int, places: int, load_left: float) -> float:
    """Return the seconds that one at `position` (1 is the next) waits even if all goes well.

    Those who run now may end at once, so the first who wait count for nothing. `places` is how many
    run at once, 0 for no limit; `load_left` what the load still takes, 0 if it is over.
    """
    rounds = (position - 1) // places if places else 0
    load = CERTAIN * load_left if len(pace.loads) >= LOAD_EVIDENCE else 0.0
    return load + (rounds * pace.quick if rounds else 0.0)


def expected(pace: CallDurations, position: int, places: int, load_left: float) -> float:
    """Return the seconds that one at `position` is likely to wait; 0 if nothing is known."""
    return load_left + (position * pace.typical / places if places else 0.0)


def retry_after(wait: float) -> float:
    """Return when whoever is refused may come again, given how long it would have waited; 0 for unknown."""
    return min(max(wait, SOONEST), LATEST) if wait else UNKNOWN


@dataclass(slots=True)
class Stopwatch:
    """Adds up the time in which it runs, by the clock that is handed in."""

    since: float | None = None
    _before: float = 0.0

    def read(self, now: float) -> float:
        """Return the seconds that it has run."""
        return self._before + (now - self.since if self.since is not None else 0.0)

    def run(self, now: float, *, on: bool) -> None:
        """Let it run, or halt it; which it may do already."""
        if on and self.since is None:
            self.since = now
        elif not on and self.since is not None:
            self._before += now - self.since
            self.since = None
