"""The rules for the path of the next call and the release of a lease, without threads, tasks or gRPC."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

_LOOK = 60.0
"""Seconds between two looks at a lease, at most."""


class Advice(Enum):
    """The loader's advice to the holder of a lease; the values are those of the contract."""

    KEEP = 1
    YIELD = 2
    MOVE = 3


def advice(number: int) -> Advice:
    """Return what a number of the contract means; one of a later contract means to go on."""
    return Advice(number) if number in _KNOWN else Advice.KEEP


_KNOWN = frozenset(each.value for each in Advice)


class Lease:
    """A lease on an instance, and the calls on it."""

    __slots__ = ("active", "idle_since", "leaving", "yielding")

    def __init__(self) -> None:
        """Begin without calls."""
        self.active = 0
        self.idle_since = 0.0
        self.yielding = False
        """It is released as soon as no call runs."""
        self.leaving = False
        """It takes no more calls."""


class Keeping:
    """The one lease that new calls take, if there is one, and when the next may be asked for.

    Not safe for threads: the blocking client calls it under its lock.
    """

    def __init__(
        self, *, idle: float, pause: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Let go after `idle` seconds without a call; wait `pause` seconds at most after failures."""
        self.current: Lease | None = None
        self.asking_since: float | None = None
        """When the lease that is being asked for was asked for."""
        self.closed = False
        self._idle = idle
        self._pause = pause
        self._clock = clock
        self._failures = 0
        self._not_before = 0.0

    def ask(self) -> bool:
        """Whether a lease has to be asked for now; if so, it counts as asked for."""
        if self.closed or self.current is not None or self.asking_since is not None:
            return False
        now = self._clock()
        if now < self._not_before:
            return False
        self.asking_since = now
        return True

    def granted(self, lease: Lease) -> None:
        """Take new calls there."""
        self.asking_since = None
        self._failures = 0
        lease.idle_since = self._clock()
        if self.closed:
            lease.leaving = True
        else:
            self.current = lease

    def refused(self, *, for_long: bool) -> None:
        """Ask again after a pause, which doubles from a second on; `for_long`: after the longest."""
        self.asking_since = None
        self._failures += 1
        pause = self._pause if for_long else min(2.0 ** min(self._failures - 1, 10), self._pause)
        self._not_before = self._clock() + pause

    def enter(self) -> Lease | None:
        """Count a call on the current lease; None if there is none."""
        lease = self.current
        if lease is not None:
            lease.active += 1
        return lease

    def leave(self, lease: Lease) -> bool:
        """Count a call as ended; return whether its lease has to be looked at."""
        lease.active -= 1
        if lease.active:
            return False
        lease.idle_since = self._clock()
        if lease.yielding:
            self.retire(lease)
        return lease.leaving

    def advised(self, lease: Lease, advice: Advice) -> None:
        """Follow the loader's advice."""
        lease.yielding = advice is Advice.YIELD
        if advice is Advice.MOVE or (lease.yielding and not lease.active):
            self.retire(lease)

    def retire(self, lease: Lease) -> None:
        """Take no more calls there; those that run may end."""
        lease.leaving = True
        if self.current is lease:
            self.current = None

    def patience(self, lease: Lease) -> float:
        """Return the seconds until the next check of the lease; retires an unused one."""
        if lease.active:
            return min(self._idle, _LOOK)
        left = lease.idle_since + self._idle - self._clock()
        if left <= 0:
            self.retire(lease)
        return min(max(left, 0.0), _LOOK)

    def close(self) -> None:
        """Take no more calls at all."""
        self.closed = True
        if self.current is not None:
            self.retire(self.current)
