"""The names and instruments of every metric that this service records itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opentelemetry.metrics import Meter, Observation
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from .family import Kind

API_CALL: Final = "api_call"
"""LocalAI's name, with its labels `method` and `path`; `status` and `service` are new. Seconds."""
API_CALL_LABELS: Final = ("method", "path", "status", "service")

REPORTED_CALLS: Final = "corral_metrics_reported_calls"
"""Calls reported to this service, by `outcome`."""
ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"

FOLDED: Final = "corral_metrics_folded_observations"
"""Observations counted under `other` because a limit on labels was reached, by `metric`."""

OTLP_POINTS: Final = "corral_metrics_otlp_points"
"""Data points received over OTLP, by `outcome`."""

BUILD_INFO: Final = "corral_build_info"
"""Always 1; the labels `version`, `python` and `grpc` hold the versions."""

# From a health probe on a Unix socket to a stream of ten minutes. LocalAI uses OpenTelemetry's default
# bounds, which are meant for milliseconds: all its calls under 5 s fall into one bucket.
SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)

KINDS: Final = {
    API_CALL: Kind.HISTOGRAM,
    REPORTED_CALLS: Kind.COUNTER,
    FOLDED: Kind.COUNTER,
    OTLP_POINTS: Kind.COUNTER,
    BUILD_INFO: Kind.GAUGE,
}
BOUNDS: Final = {API_CALL: SECONDS}


def views() -> list[View]:
    """Return the SDK's views, which must exist before the first instrument."""
    return [
        View(
            instrument_name=API_CALL,
            aggregation=ExplicitBucketHistogramAggregation(
                boundaries=SECONDS, record_min_max=False
            ),
        )
    ]


@dataclass(slots=True)
class Counts:
    """Counters of this service's own work; plain numbers, because every call increments them."""

    accepted_calls: int = 0
    rejected_calls: int = 0
    folded_calls: int = 0
    accepted_points: int = 0
    rejected_points: int = 0


class Instruments:
    """The OpenTelemetry instruments of a meter."""

    def __init__(self, meter: Meter, counts: Counts) -> None:
        """Create the instruments; `counts` is read at each collection."""
        self.api_call = meter.create_histogram(
            API_CALL, unit="s", description="Duration of API calls in seconds."
        )
        self.build_info = meter.create_gauge(
            BUILD_INFO, unit="1", description="What runs; always 1."
        )
        # Observable: a synchronous counter would make each call 50 % more expensive.
        meter.create_observable_counter(
            REPORTED_CALLS,
            [lambda _: _outcomes(counts.accepted_calls, counts.rejected_calls)],
            unit="1",
            description="Calls reported to the metrics service.",
        )
        meter.create_observable_counter(
            FOLDED,
            [lambda _: [Observation(counts.folded_calls, {"metric": API_CALL})]],
            unit="1",
            description="Observations counted as `other` because a limit of labels was reached.",
        )
        meter.create_observable_counter(
            OTLP_POINTS,
            [lambda _: _outcomes(counts.accepted_points, counts.rejected_points)],
            unit="1",
            description="Data points received over OTLP.",
        )


def _outcomes(accepted: int, rejected: int) -> list[Observation]:
    return [
        Observation(accepted, {"outcome": ACCEPTED}),
        Observation(rejected, {"outcome": REJECTED}),
    ]
