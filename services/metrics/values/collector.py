"""Records API calls in OpenTelemetry instruments, and reads all values back."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from opentelemetry.metrics import NoOpMeter
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics import export as otel
from opentelemetry.sdk.resources import Resource

from services.common.errors import InvalidRequestError

from .family import Family, Histogram, Kind, Value, labels_of
from .instruments import API_CALL_LABELS, Counts, Instruments, views
from .label_bound import LabelBound

MOST_SERIES: Final = 1900
"""Below the SDK's own limit of 2000, beyond which it merges label sets under a label of its own."""


@dataclass(frozen=True, slots=True)
class Call:
    """One API call, as it was reported."""

    method: str
    path: str
    status: str
    service: str
    seconds: float


class Collector:
    """This service's own metrics. `observe` must be called from one thread; `families` from any."""

    def __init__(
        self,
        *,
        max_label_values: int,
        max_series: int,
        max_label_length: int,
    ) -> None:
        """`max_label_values` and the others: see the settings of the same names."""
        self._max_label_length = max_label_length
        self._bound = LabelBound(
            API_CALL_LABELS, max_values=max_label_values, max_series=min(max_series, MOST_SERIES)
        )
        self._reader = otel.InMemoryMetricReader()
        self._provider = MeterProvider(
            metric_readers=[self._reader],
            # Set, not detected: only config.py reads the environment.
            resource=Resource({"service.name": "corral-metrics"}),
            exemplar_filter=AlwaysOffExemplarFilter(),
            views=views(),
            # `close` does it; an atexit handler would keep each collector alive until the process exits.
            shutdown_on_exit=False,
        )
        meter = self._provider.get_meter("corral")
        if isinstance(meter, NoOpMeter):
            raise InvalidRequestError(
                "OTEL_SDK_DISABLED is set: calls would be acknowledged and lost; unset it"
            )
        self._counts = Counts()
        self._instruments = Instruments(meter, self._counts)
        self._instruments.build_info.set(1, _build())
        self._closed = False

    @property
    def recorded_calls(self) -> int:
        """The number of calls counted since the start."""
        return self._counts.accepted_calls

    def observe(self, call: Call) -> None:
        """Count one call; reads that start after this returns include it.

        Raises InvalidRequestError that names the field; the call is then counted as rejected only.
        """
        try:
            self._check(call)
        except InvalidRequestError:
            self._counts.rejected_calls += 1
            raise
        values = (call.method, call.path, call.status, call.service)
        counted = self._bound.admit(values)
        if counted != values:
            self._counts.folded_calls += 1
        self._instruments.api_call.record(
            call.seconds, dict(zip(API_CALL_LABELS, counted, strict=True))
        )
        self._counts.accepted_calls += 1

    def observe_all(self, calls: Iterable[Call]) -> tuple[int, int]:
        """Count many calls; return the numbers accepted and rejected."""
        accepted = rejected = 0
        for call in calls:
            try:
                self.observe(call)
            except InvalidRequestError:
                rejected += 1
            else:
                accepted += 1
        return accepted, rejected

    def count_points(self, *, accepted: int, rejected: int) -> None:
        """Count data points received over OTLP."""
        self._counts.accepted_points += accepted
        self._counts.rejected_points += rejected

    def families(self) -> list[Family]:
        """Return all metrics as they are now."""
        data = self._reader.get_metrics_data()
        if data is None:
            return []
        return [
            _family(metric)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def close(self) -> None:
        """Shut the SDK down; families read earlier stay valid. Idempotent."""
        if not self._closed:
            self._closed = True
            self._provider.shutdown()

    def _check(self, call: Call) -> None:
        for field, value, required in (
            ("method", call.method, True),
            ("path", call.path, True),
            ("status", call.status, True),
            ("service", call.service, False),
        ):
            if required and not value:
                raise InvalidRequestError.of(f"call.{field}", "is required")
            if len(value) > self._max_label_length:
                raise InvalidRequestError.of(
                    f"call.{field}",
                    f"has {len(value)} characters, at most {self._max_label_length} are taken;"
                    " report a route's pattern, not a raw path",
                )
            if value and not value.isprintable():
                raise InvalidRequestError.of(f"call.{field}", "has unprintable characters")
        if not 0 <= call.seconds < float("inf"):
            raise InvalidRequestError.of("call.duration", "must be zero or more, and finite")


def _family(metric: otel.Metric) -> Family:
    data = metric.data
    if isinstance(data, otel.Histogram):
        kind = Kind.HISTOGRAM
    elif isinstance(data, otel.Sum) and data.is_monotonic:
        kind = Kind.COUNTER
    else:
        kind = Kind.GAUGE
    unit = "" if metric.unit == "1" else metric.unit or ""
    family = Family(metric.name, metric.description or "", unit, kind)
    family.series.update(_series(data.data_points))
    return family


def _series(points: Any) -> Iterator[tuple[tuple[tuple[str, str], ...], Value]]:
    for point in points:
        labels = labels_of((key, str(value)) for key, value in (point.attributes or {}).items())
        if isinstance(point, otel.HistogramDataPoint):
            yield (
                labels,
                Histogram(
                    count=point.count,
                    sum=float(point.sum),
                    bounds=tuple(point.explicit_bounds),
                    counts=tuple(point.bucket_counts),
                ),
            )
        else:
            yield labels, float(point.value)


def _build() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for label, package in (("version", "corral"), ("grpc", "grpcio")):
        try:
            versions[label] = version(package)
        except PackageNotFoundError:
            versions[label] = ""
    return versions
