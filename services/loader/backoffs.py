"""Which backends a model has to wait for after failures, and until when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from services.common.backoff import Backoff
from services.common.errors import CorralError

from . import causes
from .lifecycle_state import Lifecycle


class Backoffs:
    """The waits of one model, by candidate. Times are seconds since the epoch."""

    def __init__(
        self,
        model: str,
        *,
        backoff: Callable[[], Backoff],
        quarantine: float,
        ended: Callable[[str], None],
    ) -> None:
        """`quarantine` is the wait in seconds after too many crashes; `ended` hears whose wait is over."""
        self._model = model
        self._backoff = backoff
        self._quarantine = quarantine
        self._ended = ended
        self._until: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def until(self, candidate: str) -> float | None:
        """Return when a candidate may be tried again; None if it may now."""
        at = self._until.get(candidate, 0.0)
        return at if at > time.time() else None

    def retry_time(self, state: Lifecycle) -> float | None:
        """Return when the model may be tried again: with its first candidate, or after its quarantine."""
        if not self._until:
            return None
        return max(self._until.values()) if state.quarantined else min(self._until.values())

    def arm(self, candidate: str, failures: int, *, quarantine: bool) -> None:
        """Let a candidate wait as long as belongs to so many failures in a row."""
        delay = self._backoff().delay(failures)
        if quarantine:
            delay = max(delay, self._quarantine)
        self._until[candidate] = time.time() + delay

    def disarm(self, candidate: str | None = None) -> None:
        """Forget the wait of a candidate, or of all."""
        if candidate is not None:
            self._until.pop(candidate, None)
            return
        self._until.clear()
        if self._timer is not None:
            self._timer.cancel()

    def watch(self, state: Lifecycle) -> None:
        """Tell when the model, which rests now, may be tried again."""
        if self._timer is not None:
            self._timer.cancel()
        at = self.retry_time(state) or 0.0
        candidate = next((name for name, until in self._until.items() if until == at), "")
        delay = max(at - time.time(), 0.0)
        self._timer = asyncio.get_running_loop().call_later(delay, self._ended, candidate)

    def usable(self, state: Lifecycle, candidates: tuple[str, ...]) -> tuple[str, ...]:
        """Return the candidates that need not wait. Raises LoadBackoffError or CrashLoopError if all must."""
        waiting = [name for name in candidates if self.until(name)]
        usable = tuple(name for name in candidates if name not in waiting)
        if waiting and (not usable or state.quarantined):
            raise self.error(state)
        return usable

    def error(self, state: Lifecycle) -> CorralError:
        """Return what a call is told that comes too early."""
        left = max((self.retry_time(state) or 0.0) - time.time(), 0.001)
        if state.quarantined:
            return causes.quarantined(self._model, left, state.crashes, state.failures)
        waiting = tuple(
            penalty.failure for penalty in state.penalties if self.until(penalty.candidate)
        )
        return causes.backing_off(self._model, left, waiting or state.failures)
