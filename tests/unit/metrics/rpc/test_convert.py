import math

import pytest
from google.protobuf.duration_pb2 import Duration

from corral.metrics.v1 import metrics_pb2 as pb
from services.common.errors import InvalidRequestError
from services.metrics.rpc import convert
from services.metrics.values.family import Family, Histogram, Kind


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        (Duration(seconds=1, nanos=500_000_000), 1.5),
        (Duration(seconds=-1, nanos=-500_000_000), -1.5),
        (Duration(seconds=1, nanos=-1), math.nan),
        (Duration(nanos=10**9), math.nan),
    ],
)
def test_the_duration_of_a_call(duration: Duration, seconds: float) -> None:
    call = convert.call_of(pb.ApiCall(method="GET", duration=duration))
    assert call.method == "GET"
    assert call.seconds == pytest.approx(seconds, nan_ok=True)


def test_a_filter_by_labels() -> None:
    assert convert.label_filter({"b": "1", "a": "2"}) == (("a", "2"), ("b", "1"))
    with pytest.raises(InvalidRequestError, match="is not a label's name"):
        convert.label_filter({"a-b": "1"})


def test_the_response() -> None:
    histogram = Histogram(3, 1.5, (1.0,), (2, 1))
    families = [
        Family("n", "text", "s", Kind.GAUGE, {(("x", "a"),): 2.0}),
        Family("h", "", "", Kind.HISTOGRAM, {(): histogram}),
    ]
    response = convert.response(families)
    gauge, other = response.metrics
    assert (gauge.name, gauge.unit, gauge.type) == ("n", "s", pb.Metric.TYPE_GAUGE)
    assert (dict(gauge.series[0].labels), gauge.series[0].number) == ({"x": "a"}, 2.0)
    assert list(other.series[0].histogram.bucket_counts) == [2, 1]
    assert response.time.seconds > 0
