"""From OpenTelemetry's messages to points."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2

from .family import Histogram, Kind
from .received import Point

_NO_VALUE: Final = metrics_pb2.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
_TOTAL: Final = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
_SERVICE: Final = "service.name"


def points(request: pb.ExportMetricsServiceRequest) -> Iterator[Point | str]:
    """Yield each point, or a text where one is of a kind that has no place here."""
    for resource in request.resource_metrics:
        attributes = _labels(resource.resource.attributes)
        source = json.dumps(sorted(attributes.items()))
        service = attributes.get(_SERVICE, "")
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in _of_metric(metric):
                    if isinstance(point, str):
                        yield point
                    else:
                        yield _point(metric, point, f"{source}{scope.scope.name}", service)


def _of_metric(metric: metrics_pb2.Metric) -> Iterator[Any]:
    kind = metric.WhichOneof("data")
    if kind is None:
        return
    for point in getattr(metric, kind).data_points:
        if point.flags & _NO_VALUE:
            continue
        if kind in ("gauge", "sum", "histogram"):
            yield point
        else:
            yield f"{metric.name}: {kind} is not taken; send sums, gauges or histograms with buckets"


def _point(metric: metrics_pb2.Metric, point: Any, source: str, service: str) -> Point:
    total = True
    value: float | Histogram
    if metric.HasField("histogram"):
        kind = Kind.HISTOGRAM
        total = metric.histogram.aggregation_temporality == _TOTAL
        counts = tuple(point.bucket_counts)
        bounds = tuple(point.explicit_bounds)
        # A histogram may come without buckets; then all of it lies in the one without a bound.
        value = Histogram(point.count, point.sum, bounds, counts or (point.count,))
    else:
        value = point.as_double if point.HasField("as_double") else float(point.as_int)
        kind = Kind.GAUGE
        if metric.HasField("sum"):
            total = metric.sum.aggregation_temporality == _TOTAL
            kind = Kind.COUNTER if metric.sum.is_monotonic else Kind.GAUGE
    labels = _labels(point.attributes)
    if service:
        labels.setdefault("service", service)
    return Point(
        source=source,
        name=metric.name,
        description=metric.description,
        unit="" if metric.unit == "1" else metric.unit,
        kind=kind,
        labels=labels,
        value=value,
        total=total,
        start=point.start_time_unix_nano,
        time=point.time_unix_nano,
    )


def _labels(attributes: Sequence[KeyValue]) -> dict[str, str]:
    return {pair.key: _text(pair.value) for pair in attributes}


def _text(value: AnyValue) -> str:
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return ""
        case "array_value":
            return [_plain(item) for item in value.array_value.values]
        case "kvlist_value":
            return {item.key: _plain(item.value) for item in value.kvlist_value.values}
        case "bytes_value":
            return base64.b64encode(value.bytes_value).decode()
        case name:
            return getattr(value, name)
