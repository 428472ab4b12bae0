import pytest

from services.common.errors import InvalidRequestError
from services.metrics.values.family import Kind
from services.metrics.values.prometheus_names import label_names, metric_name, sample_names


def test_metric_names() -> None:
    assert metric_name("http.server.duration", Kind.HISTOGRAM) == "http_server_duration"
    assert metric_name("calls_total", Kind.COUNTER) == "calls"
    assert metric_name("calls_total", Kind.GAUGE) == "calls_total"
    assert metric_name("4xx", Kind.GAUGE) == "_4xx"
    with pytest.raises(InvalidRequestError, match="is not a metric's name"):
        metric_name("--", Kind.GAUGE)


def test_label_names() -> None:
    assert label_names({"a.b": "1", "a_b": "2"}) == {"a_b": "1;2"}
    assert label_names({"le": "1", "__x": "2", "3": "4", "": "5"}) == {
        "exported_le": "1",
        "exported_x": "2",
        "_3": "4",
        "_": "5",
    }


def test_sample_names() -> None:
    assert sample_names("n", Kind.COUNTER) == ("n", "n_total")
    assert sample_names("n", Kind.GAUGE) == ("n",)
    assert sample_names("n", Kind.HISTOGRAM) == ("n", "n_bucket", "n_count", "n_sum")
