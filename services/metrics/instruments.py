"""Every metric that this service itself records, by name: the one place to look them up."""

from __future__ import annotations

from typing import Final

from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from .family import Kind

API_CALL: Final = "api_call"
"""LocalAI's name, with its labels `method` and `path`; `status` and `service` are new. Seconds."""
API_CALL_LABELS: Final = ("method", "path", "status", "service")

REPORTED_CALLS: Final = "corral_metrics_reported_calls"
"""Calls that were reported to this service, by `outcome`."""
ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"

FOLDED: Final = "corral_metrics_folded_observations"
"""Observations that went to the series `other` since a limit of labels was reached, by `metric`."""

OTLP_POINTS: Final = "corral_metrics_otlp_points"
"""Data points that came over OTLP, by `outcome`."""

BUILD_INFO: Final = "corral_build_info"
"""Always 1; the labels `version`, `python` and `grpc` say what runs."""

# From a probe's fraction of a millisecond on a Unix socket to a stream of ten minutes. LocalAI has
# OpenTelemetry's default bounds, which are meant for milliseconds: all calls under 5 s in one bucket.
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
    """Return what the SDK must know before the first instrument is made."""
    return [
        View(
            instrument_name=API_CALL,
            aggregation=ExplicitBucketHistogramAggregation(
                boundaries=SECONDS, record_min_max=False
            ),
        )
    ]


class Instruments:
    """The instruments, made once on one meter."""

    def __init__(self, meter: Meter) -> None:
        """Make them all."""
        self.api_call = meter.create_histogram(
            API_CALL, unit="s", description="Duration of API calls in seconds."
        )
        self.reported_calls = meter.create_counter(
            REPORTED_CALLS, unit="1", description="Calls reported to the metrics service."
        )
        self.folded = meter.create_counter(
            FOLDED,
            unit="1",
            description="Observations counted as `other` because a limit of labels was reached.",
        )
        self.otlp_points = meter.create_counter(
            OTLP_POINTS, unit="1", description="Data points received over OTLP."
        )
        self.build_info = meter.create_gauge(
            BUILD_INFO, unit="1", description="What runs; always 1."
        )
