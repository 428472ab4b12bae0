"""The back-off of a model's backends after failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from services.common.backoff import Backoff
from services.common.errors import CorralError
from services.loader.lifecycle.state import Lifecycle

from . import errors


@dataclass(frozen=True, slots=True)
class _Wait:
    """The back-off of one candidate."""

    deadline: float
    """By the monotonic clock, which decides: the system clock may be changed."""
    until: float
    """Seconds since the epoch, for people."""

    @property
    def left(self) -> float:
        """Seconds left; 0 if the back-off is over."""
        return max(self.deadline - time.monotonic(), 0.0)


class Backoffs:
    """The back-offs of one model, by candidate. Times are seconds since the epoch."""

    def __init__(
        self,
        model: str,
        *,
        backoff: Callable[[], Backoff],
        quarantine: float,
        ended: Callable[[str], None],
    ) -> None:
        """`quarantine`: seconds to wait after too many crashes.

        `ended` is called with the candidate whose back-off is over.
        """
        self._model = model
        self._backoff = backoff
        self._quarantine = quarantine
        self._ended = ended
        self._waits: dict[str, _Wait] = {}
        self._timer: asyncio.TimerHandle | None = None

    def until(self, candidate: str) -> float | None:
        """Return when a candidate may be tried again; None if it may now."""
        wait = self._waits.get(candidate)
        return wait.until if wait is not None and wait.left > 0 else None

    def retry_time(self, state: Lifecycle) -> float | None:
        """Return when the model may be tried again: with its first candidate, or after its quarantine."""
        _, wait = self._deciding(state)
        return wait.until if wait is not None else None

    def arm(self, candidate: str, failures: int, *, quarantine: bool) -> None:
        """Start a candidate's back-off for this many consecutive failures."""
        delay = self._backoff().delay(failures)
        if quarantine:
            delay = max(delay, self._quarantine)
        self._waits[candidate] = _Wait(time.monotonic() + delay, time.time() + delay)

    def disarm(self, candidate: str | None = None) -> None:
        """Forget the back-off of one candidate, or of all."""
        if candidate is not None:
            self._waits.pop(candidate, None)
            return
        self._waits.clear()
        if self._timer is not None:
            self._timer.cancel()

    def watch(self, state: Lifecycle) -> None:
        """Call `ended` when the model, which is not running, may be tried again."""
        if self._timer is not None:
            self._timer.cancel()
        candidate, wait = self._deciding(state)
        delay = wait.left if wait is not None else 0.0
        self._timer = asyncio.get_running_loop().call_later(delay, self._ended, candidate)

    def _deciding(self, state: Lifecycle) -> tuple[str, _Wait | None]:
        """Return the candidate whose back-off decides when the model may be tried again, and that back-off."""
        if not self._waits:
            return "", None
        choose = max if state.quarantined else min
        return choose(self._waits.items(), key=lambda item: item[1].deadline)

    def usable(self, state: Lifecycle, candidates: tuple[str, ...]) -> tuple[str, ...]:
        """Return the candidates not in back-off.

        Raises LoadBackoffError if all are, or CrashLoopError in quarantine.
        """
        waiting = [name for name in candidates if self.until(name)]
        usable = tuple(name for name in candidates if name not in waiting)
        if waiting and (not usable or state.quarantined):
            raise self.error(state)
        return usable

    def error(self, state: Lifecycle) -> CorralError:
        """Return the error for a call made before the back-off is over."""
        _, wait = self._deciding(state)
        left = max(wait.left if wait is not None else 0.0, 0.001)
        if state.quarantined:
            return errors.quarantined(self._model, left, state.crashes, state.failures)
        waiting = tuple(
            penalty.failure for penalty in state.penalties if self.until(penalty.candidate)
        )
        return errors.backing_off(self._model, left, waiting or state.failures)
