"""How long to wait after the n-th failure. Pure arithmetic: no clock, no state."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that grow by `factor` from `initial` to `maximum` seconds.

    `jitter` is the part of each delay that is drawn by chance: 0.2 means 80 to 100 % of it, so that
    many clients which failed together do not come back together.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 60.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that would make the delays shrink or go negative."""
        if self.initial < 0 or self.maximum < self.initial:
            raise ValueError("a backoff needs 0 <= initial <= maximum")
        if self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ValueError("a backoff needs factor >= 1 and 0 <= jitter <= 1")

    def delay(self, attempt: int, *, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after failure number `attempt`, counted from 1."""
        if attempt < 1:
            return 0.0
        try:
            full = min(self.initial * self.factor ** (attempt - 1), self.maximum)
        except OverflowError:
            full = self.maximum
        return full * (1 - self.jitter * draw())
