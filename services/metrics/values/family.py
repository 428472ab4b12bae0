"""A snapshot of a metric: the form that scrapes, queries and pushes share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Name and value, sorted by name, so that equal label sets are equal keys."""


class Kind(Enum):
    """The type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations in buckets: `counts[i]` are at most `bounds[i]`, and the last ones exceed them all."""

    count: int
    sum: float
    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    def plus(self, other: Histogram) -> Histogram:
        """Return the sum; both MUST have the same bounds."""
        return Histogram(
            count=self.count + other.count,
            sum=self.sum + other.sum,
            bounds=self.bounds,
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
        )


Value: TypeAlias = "float | Histogram"


@dataclass(slots=True)
class Family:
    """One metric with its series, by label set."""

    name: str
    """The name in a scrape, without `_total`, `_bucket`, `_sum` and `_count`."""
    description: str
    unit: str
    kind: Kind
    series: dict[Labels, Value] = field(default_factory=dict)

    def answers_to(self, name: str) -> bool:
        """Whether a query for this name selects the family; a counter's `_total` is optional."""
        return name == self.name or (
            self.kind is Kind.COUNTER and name.removesuffix("_total") == self.name
        )


def labels_of(pairs: Mapping[str, str] | Iterable[tuple[str, str]]) -> Labels:
    """Return the labels sorted by name."""
    return tuple(sorted(pairs.items() if isinstance(pairs, Mapping) else pairs))


def together(one: Value, other: Value) -> Value:
    """Return the sum; both MUST have the same type, and histograms the same bounds."""
    if isinstance(one, Histogram) and isinstance(other, Histogram):
        return one.plus(other)
    if isinstance(one, Histogram) or isinstance(other, Histogram):
        raise TypeError("a histogram and a number cannot be added")
    return one + other


def merged(*groups: Iterable[Family]) -> list[Family]:
    """Merge the groups, each name once and each label set once; modifies the groups' families.

    Values of the same series add up; of a gauge, the last group's value wins.
    """
    families: dict[str, Family] = {}
    for group in groups:
        for family in group:
            first = families.setdefault(family.name, family)
            if first is family:
                continue
            for labels, value in family.series.items():
                before = first.series.get(labels)
                if before is not None and family.kind is not Kind.GAUGE:
                    value = together(before, value)
                first.series[labels] = value
    return list(families.values())


def select(
    families: Iterable[Family], names: Iterable[str] = (), labels: Labels = ()
) -> list[Family]:
    """Return the families with these names and their series that have all these labels, sorted by name.

    No names selects all families. With labels alone, families without a matching series are left out.
    """
    wanted = tuple(names)
    chosen = []
    for family in families:
        if wanted and not any(family.answers_to(name) for name in wanted):
            continue
        series = {key: value for key, value in family.series.items() if set(labels) <= set(key)}
        if series or wanted or not labels:
            chosen.append(Family(family.name, family.description, family.unit, family.kind, series))
    return sorted(chosen, key=lambda family: family.name)
