"""Conversion between the proto's messages and the domain's values."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration
from prometheus_client.validation import _is_valid_legacy_labelname

from corral.metrics.v1 import metrics_pb2 as pb
from services.common.errors import InvalidRequestError
from services.common.rpc.times import in_seconds, timestamp
from services.metrics.values.collector import Call
from services.metrics.values.family import Family, Histogram, Kind, Labels, labels_of

_TYPES: Final = {
    Kind.COUNTER: pb.Metric.TYPE_COUNTER,
    Kind.GAUGE: pb.Metric.TYPE_GAUGE,
    Kind.HISTOGRAM: pb.Metric.TYPE_HISTOGRAM,
}


def call_of(message: pb.ApiCall) -> Call:
    """Return the reported call; the collector validates it."""
    return Call(
        method=message.method,
        path=message.path,
        status=message.status,
        service=message.service,
        seconds=_seconds(message.duration),
    )


def label_filter(labels: Mapping[str, str]) -> Labels:
    """Return the labels to select by, or raise InvalidRequestError that names the bad one."""
    for name in labels:
        if not _is_valid_legacy_labelname(name):
            raise InvalidRequestError.of(f"labels[{name!r}]", "is not a label's name")
    return labels_of(labels)


def response(families: Iterable[Family]) -> pb.QueryMetricsResponse:
    """Return the message with the families and the current time."""
    return pb.QueryMetricsResponse(metrics=map(_metric, families), time=timestamp(time.time()))


def _metric(family: Family) -> pb.Metric:
    metric = pb.Metric(
        name=family.name,
        description=family.description,
        unit=family.unit,
        type=_TYPES[family.kind],
    )
    for labels, value in family.series.items():
        series = metric.series.add(labels=dict(labels))
        if isinstance(value, Histogram):
            series.histogram.count = value.count
            series.histogram.sum = value.sum
            series.histogram.bounds.extend(value.bounds)
            series.histogram.bucket_counts.extend(value.counts)
        else:
            series.number = value
    return metric


def _seconds(duration: Duration) -> float:
    # Not a valid Duration: the signs differ, or the nanoseconds reach a second.
    if abs(duration.nanos) >= 10**9 or duration.seconds * duration.nanos < 0:
        return math.nan
    return in_seconds(duration)
