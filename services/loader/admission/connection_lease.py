"""The lease for the calls of a connection that bypasses the gateway."""

from __future__ import annotations

import math
from collections.abc import Callable

from services.loader.instances.instance import Instance, Lease

from .meter import CallMeter


class CountedCalls(Lease):
    """One lease for all open calls of a connection; without open calls it neither holds nor counts.

    There is no object per call, as a connection carries tens of thousands of calls a second.
    """

    __slots__ = ("_changed", "_meter", "_on_drain", "_stands_still", "open")

    def __init__(
        self,
        instance: Instance,
        changed: Callable[[Instance], None],
        meter: CallMeter,
        *,
        stands_still: Callable[[], float],
    ) -> None:
        """`changed` is called with the instance when a call ended and others may be waiting for that.

        `stands_still` returns since when the backend has owed data, by the monotonic clock.
        """
        self._stands_still = stands_still
        self._changed = changed
        self._meter = meter
        self._on_drain: Callable[[], object] | None = None
        self.open = 0
        super().__init__(instance, lambda _: None, holds=False)
        self.used = True

    @property
    def progress(self) -> float:
        """When the backend last delivered data that it owed; infinity while it owes none."""
        return self._stands_still() if self.open else math.inf

    @progress.setter
    def progress(self, _: float) -> None:
        """Ignored: the connection knows its progress."""

    def begin(self, count: int, *, counted: int = 0) -> None:
        """Count calls that begin; the instance's total already includes `counted` of them."""
        self.open += count
        calls = self.instance.calls
        calls.hold(count)
        calls.begin(count, counted=counted)

    def end(self, count: int) -> None:
        """Count calls that ended."""
        self.open -= count
        calls = self.instance.calls
        calls.end(count)
        calls.let_go(count)
        if not calls.holds or self._meter.waiting:
            calls.mark_used()
            self._changed(self.instance)

    def on_drain(self, action: Callable[[], object]) -> None:
        """Call `action` when the instance takes no more calls."""
        self._on_drain = action

    def drain(self) -> None:
        """Called when the instance takes no more calls."""
        if self._on_drain is not None:
            self._on_drain()

    def release(self) -> None:
        """End the lease and all open calls."""
        self._on_cut = self._on_drain = None
        self.instance.leases.discard(self)
        if self.open:
            self.end(self.open)
