"""Rendering metrics as text, in Prometheus' format or in OpenMetrics."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import exposition
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from services.metrics.values.family import Family, Histogram, Kind

_TYPES: Final = {Kind.COUNTER: "counter", Kind.GAUGE: "gauge", Kind.HISTOGRAM: "histogram"}
# Fast, and within a few percent of the best level for such repetitive text.
_GZIP_LEVEL: Final = 1


@dataclass(frozen=True, slots=True)
class Page:
    """A rendered scrape."""

    body: bytes
    content_type: str
    encoding: str = ""


def render(families: Iterable[Family], *, accept: str = "", accept_encoding: str = "") -> Page:
    """Return the families in the format that `accept` prefers; by default in Prometheus' text format.

    prometheus_client does the escaping and the formatting of numbers.
    """
    try:
        encode, content_type = exposition.choose_encoder(accept)
    except (ValueError, TypeError):
        # The library does not handle a malformed version in an Accept header.
        encode, content_type = exposition.choose_encoder("")
    body = encode(_Snapshot(families))
    if exposition.gzip_accepted(accept_encoding):
        return Page(gzip.compress(body, _GZIP_LEVEL), content_type, "gzip")
    return Page(body, content_type)


class _Snapshot(Collector):
    """The families as a collector, which the library's encoders expect."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Return the families as the library's metrics."""
        return map(_metric, self._families)


def _metric(family: Family) -> Metric:
    # Without the unit: the library would put it into the name, and `api_call` must keep its own.
    metric = Metric(family.name, family.description, _TYPES[family.kind])
    suffix = "_total" if family.kind is Kind.COUNTER else ""
    for key, value in family.series.items():
        labels = dict(key)
        if isinstance(value, Histogram):
            below = 0
            bounds = (*map(floatToGoString, value.bounds), "+Inf")
            for bound, count in zip(bounds, value.counts, strict=True):
                below += count
                metric.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, below)
            metric.add_sample(f"{family.name}_count", labels, value.count)
            metric.add_sample(f"{family.name}_sum", labels, value.sum)
        else:
            metric.add_sample(family.name + suffix, labels, value)
    return metric
