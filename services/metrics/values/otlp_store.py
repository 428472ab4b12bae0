"""Metrics that other processes sent over OTLP, merged into one set of families.

Each sender sends its own totals. They are turned into increments on arrival, so that the totals here
continue across restarts of a sender, and those of several senders add up.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from services.common.errors import InvalidRequestError

from .family import Family, Histogram, Kind, Labels, Value, labels_of, together
from .prometheus_names import label_names, metric_name, sample_names


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one series, as it was sent."""

    source: str
    """Identifies the sender."""
    name: str
    description: str
    unit: str
    kind: Kind
    labels: Mapping[str, str]
    value: Value
    total: bool
    """Whether the value counts from `start`; otherwise it counts from the previous point."""
    start: int
    """Nanoseconds since 1970; 0 if the sender left it out."""
    time: int
    """Nanoseconds since 1970."""


_Stream: TypeAlias = tuple[str, str, Labels, int]


@dataclass(slots=True)
class _Last:
    """The last value of one sender for one series."""

    value: Value
    time: int
    seen: float


class OtlpStore:
    """The values received over OTLP. All methods are thread-safe."""

    def __init__(
        self,
        *,
        own: Mapping[str, Kind],
        own_bounds: Mapping[str, tuple[float, ...]],
        max_series: int,
        max_label_length: int,
        stale_after: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`own`: the metrics that this service records itself, with their kinds.

        Points for those must have the same kind, and the same bounds if `own_bounds` has an entry.
        A sender that sent nothing for `stale_after` seconds is forgotten when others need its place.
        """
        self._own_bounds = dict(own_bounds)
        self._max_series = max_series
        self._max_label_length = max_label_length
        self._stale_after = stale_after
        self._clock = clock
        self._families: dict[str, Family] = {}
        self._kinds: dict[str, Kind] = {}
        self._exposed: dict[str, str] = {}
        for name, kind in own.items():
            self._reserve(name, kind)
        # Least recently seen first. The start is part of the key: two processes of one service may
        # use the same name, and their alternating points would look like endless restarts.
        self._last: OrderedDict[_Stream, _Last] = OrderedDict()
        self._gauges: dict[tuple[str, Labels], int] = {}
        self._series = 0
        self._lock = threading.Lock()

    def offer(self, point: Point) -> str:
        """Add a point; return an empty string, or why it was refused."""
        try:
            with self._lock:
                self._take(point)
        except InvalidRequestError as error:
            return error.message
        return ""

    def families(self) -> list[Family]:
        """Return a snapshot of all families."""
        with self._lock:
            return [
                Family(f.name, f.description, f.unit, f.kind, dict(f.series))
                for f in self._families.values()
            ]

    def _take(self, point: Point) -> None:
        name = metric_name(point.name, point.kind)
        labels = labels_of(label_names(point.labels))
        self._check(name, point, labels)
        family = self._families.get(name)
        known = family is not None and labels in family.series
        if not known and self._series >= self._max_series:
            raise InvalidRequestError(f"{name}: no room for more than {self._max_series} series")
        growth = self._growth(name, labels, point)
        if growth is None:
            return
        if family is None:
            self._reserve(name, point.kind)
            family = Family(name, point.description, point.unit, point.kind)
            self._families[name] = family
        before = family.series.get(labels)
        family.series[labels] = (
            growth if before is None or _sets(point) else together(before, growth)
        )
        self._series += not known

    def _check(self, name: str, point: Point, labels: Labels) -> None:
        kind = self._kinds.get(name)
        if kind is not None and kind is not point.kind:
            raise InvalidRequestError(
                f"{name}: is a {kind.value} already, not a {point.kind.value}"
            )
        for exposed in sample_names(name, point.kind):
            if self._exposed.get(exposed, name) != name:
                raise InvalidRequestError(
                    f"{name}: {exposed} is part of the metric {self._exposed[exposed]} already"
                )
        for label, text in labels:
            if len(text) > self._max_label_length:
                raise InvalidRequestError(f"{name}: the value of the label {label} is too long")
        if isinstance(point.value, Histogram):
            self._check_histogram(name, point.value, labels)
        elif point.kind is Kind.COUNTER and not 0 <= point.value < math.inf:
            raise InvalidRequestError(f"{name}: a counter cannot be {point.value}")

    def _check_histogram(self, name: str, value: Histogram, labels: Labels) -> None:
        if len(value.counts) != len(value.bounds) + 1 or sum(value.counts) != value.count:
            raise InvalidRequestError(f"{name}: the histogram's counts do not fit together")
        if list(value.bounds) != sorted(set(value.bounds)):
            raise InvalidRequestError(f"{name}: the histogram's bounds do not ascend")
        bounds = self._own_bounds.get(name)
        if bounds is None and (family := self._families.get(name)) is not None:
            before = family.series.get(labels)
            bounds = before.bounds if isinstance(before, Histogram) else None
        if bounds is not None and bounds != value.bounds:
            raise InvalidRequestError(f"{name}: the histogram has other bounds than before")

    def _growth(self, name: str, labels: Labels, point: Point) -> Value | None:
        """Return the value to add (or to set, for a gauge); None if the point is out of date."""
        if _sets(point):
            if point.time < self._gauges.get((name, labels), 0):
                return None
            self._gauges[name, labels] = point.time
            return point.value
        if not point.total:
            return point.value
        now = self._clock()
        stream = (point.source, name, labels, point.start)
        last = self._last.get(stream)
        if last is None:
            self._make_room(name, now)
            self._last[stream] = _Last(point.value, point.time, now)
            return point.value
        if point.time < last.time:
            return None
        growth = _difference(point.value, last.value)
        last.value, last.time, last.seen = point.value, point.time, now
        self._last.move_to_end(stream)
        # Less than before: the sender restarted its count without a new start time.
        return point.value if growth is None else growth

    def _make_room(self, name: str, now: float) -> None:
        if len(self._last) < self._max_series:
            return
        stream, last = next(iter(self._last.items()))
        if now - last.seen < self._stale_after:
            raise InvalidRequestError(
                f"{name}: no room for more than {self._max_series} series of all senders"
            )
        del self._last[stream]

    def _reserve(self, name: str, kind: Kind) -> None:
        self._kinds[name] = kind
        self._exposed.update(dict.fromkeys(sample_names(name, kind), name))


def _sets(point: Point) -> bool:
    return point.kind is Kind.GAUGE and point.total


def _difference(now: Value, before: Value) -> Value | None:
    """Return the increment, or None if any part decreased."""
    if isinstance(now, Histogram) and isinstance(before, Histogram):
        if now.bounds != before.bounds:
            return None
        counts = tuple(a - b for a, b in zip(now.counts, before.counts, strict=True))
        if min(counts) < 0:
            return None
        return Histogram(now.count - before.count, now.sum - before.sum, now.bounds, counts)
    assert not isinstance(now, Histogram)
    assert not isinstance(before, Histogram)
    return now - before if now >= before else None
