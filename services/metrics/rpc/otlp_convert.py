"""Conversion from OTLP messages to points, and from families to OTLP messages."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2

from services.metrics.values.family import Family, Histogram, Kind
from services.metrics.values.otlp_store import Point

_NO_VALUE: Final = metrics_pb2.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
_TOTAL: Final = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
_SERVICE: Final = "service.name"
_INSTANCE: Final = "service.instance.id"


def points(request: pb.ExportMetricsServiceRequest, *, own: str) -> Iterator[Point | str]:
    """Yield each point, or the reason why it is refused.

    Points that this process (`own`) sent are refused: they would be added to themselves.
    """
    for resource in request.resource_metrics:
        attributes = _labels(resource.resource.attributes)
        if attributes.get(_INSTANCE) == own:
            yield "the values come from here: this service forwards to itself"
            continue
        source = json.dumps(sorted(attributes.items()))
        service = attributes.get(_SERVICE, "")
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in _of_metric(metric):
                    if isinstance(point, str):
                        yield point
                    else:
                        yield _point(metric, point, f"{source}{scope.scope.name}", service)


def request(
    families: Iterable[Family], *, instance: str, start: int, now: int
) -> pb.ExportMetricsServiceRequest:
    """Return an export with all values as totals since `start`; times are nanoseconds since 1970."""
    made = pb.ExportMetricsServiceRequest()
    resource = made.resource_metrics.add()
    for key, text in ((_SERVICE, "corral-metrics"), (_INSTANCE, instance)):
        resource.resource.attributes.add(key=key, value=AnyValue(string_value=text))
    scope = resource.scope_metrics.add()
    scope.scope.name = "corral"
    for family in families:
        metric = scope.metrics.add(
            name=family.name, description=family.description, unit=family.unit
        )
        for labels, value in family.series.items():
            facts: Any = {
                "attributes": [
                    KeyValue(key=key, value=AnyValue(string_value=text)) for key, text in labels
                ],
                "start_time_unix_nano": start,
                "time_unix_nano": now,
            }
            if isinstance(value, Histogram):
                metric.histogram.aggregation_temporality = _TOTAL
                metric.histogram.data_points.add(
                    count=value.count,
                    sum=value.sum,
                    explicit_bounds=value.bounds,
                    bucket_counts=value.counts,
                    **facts,
                )
            elif family.kind is Kind.COUNTER:
                metric.sum.aggregation_temporality = _TOTAL
                metric.sum.is_monotonic = True
                metric.sum.data_points.add(as_double=value, **facts)
            else:
                metric.gauge.data_points.add(as_double=value, **facts)
    return made


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
        # A histogram without buckets has one bucket without a bound.
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
