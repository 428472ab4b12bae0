"""The calls of a connection that goes past the gateway, as leases: each holds its instance, and counts."""

from __future__ import annotations

import math
from collections.abc import Callable

from services.loader.instances.instance import Instance, Lease

from .meter import CallMeter


class CountedCalls(Lease):
    """One lease for the open calls of one connection; without any, it neither holds nor counts.

    There is no object for each call: a connection carries tens of thousands a second.
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
        """`changed` is told when a call has ended for which others may wait.

        `stands_still` returns since when the backend owes something, by the monotonic clock.
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
        """When the backend last did something that it owed; infinity while it owes nothing."""
        return self._stands_still() if self.open else math.inf

    @progress.setter
    def progress(self, _: float) -> None:
        """Of no meaning: it is known from the connection."""

    def begin(self, count: int, *, counted: int = 0) -> None:
        """Count calls that begin; `counted` of them are in the instance's total already."""
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
        """Call `action` when the instance is to take no more calls."""
        self._on_drain = action

    def drain(self) -> None:
        """The instance is to take no more calls."""
        if self._on_drain is not None:
            self._on_drain()

    def release(self) -> None:
        """Let go, with all calls that are still open."""
        self._on_cut = self._on_drain = None
        self.instance.leases.discard(self)
        if self.open:
            self.end(self.open)
