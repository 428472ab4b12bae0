from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

from services.common.errors import InvalidRequestError
from services.metrics.scrape.exposition import render
from services.metrics.values.collector import Call, Collector
from services.metrics.values.family import Family, Histogram, Kind, labels_of, select

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
LABELS = {"method": "GRPC", "path": "/a.B/C", "status": "OK", "service": "loader"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector(max_label_values=5, max_series=20, max_label_length=64)
    yield made
    made.close()
    made.close()


def call(seconds: float = 0.02, **labels: str) -> Call:
    return Call(**{**LABELS, **labels}, seconds=seconds)


def api_call(collector: Collector) -> Family:
    (family,) = select(collector.families(), ["api_call"])
    return family


def number(collector: Collector, name: str, **labels: str) -> float:
    (family,) = select(collector.families(), [name], labels_of(labels))
    (value,) = family.series.values()
    assert isinstance(value, float)
    return value


def test_a_call_is_in_its_bucket(collector: Collector) -> None:
    collector.observe(call(0.02))
    collector.observe(call(700.0))
    family = api_call(collector)
    assert (family.kind, family.unit) == (Kind.HISTOGRAM, "s")
    value = family.series[labels_of(LABELS)]
    assert isinstance(value, Histogram)
    assert value.count == 2
    assert value.sum == pytest.approx(700.02)
    assert dict(zip(value.bounds, value.counts, strict=False))[0.025] == 1
    assert value.counts[-1] == 1
    assert len(value.counts) == len(value.bounds) + 1
    assert collector.recorded_calls == 2


def test_there_is_no_api_call_before_the_first(collector: Collector) -> None:
    assert select(collector.families(), ["api_call"]) == []
    assert number(collector, "corral_metrics_reported_calls_total", outcome="accepted") == 0


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("call.method", call(method="")),
        ("call.path", call(path="")),
        ("call.status", call(status="")),
        ("call.path", call(path="/" + "x" * 64)),
        ("call.service", call(service="y" * 65)),
        ("call.path", call(path="/a\nb 1")),
        ("call.duration", call(-0.001)),
        ("call.duration", call(math.nan)),
        ("call.duration", call(math.inf)),
    ],
)
def test_a_malformed_call(collector: Collector, field: str, bad: Call) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        collector.observe(bad)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert select(collector.families(), ["api_call"]) == []
    assert number(collector, "corral_metrics_reported_calls", outcome="rejected") == 1
    assert collector.recorded_calls == 0


def test_the_service_may_be_missing(collector: Collector) -> None:
    collector.observe(call(service=""))
    assert labels_of({**LABELS, "service": ""}) in api_call(collector).series


def test_a_flood_of_labels_is_folded_and_nothing_is_lost(collector: Collector) -> None:
    for index in range(500):
        collector.observe(call(path=f"/{index}", status=str(index % 7)))
    family = api_call(collector)
    assert len(family.series) <= 21
    assert sum(value.count for value in family.series.values() if isinstance(value, Histogram)) == (
        500
    )
    folded = number(collector, "corral_metrics_folded_observations", metric="api_call")
    assert 480 <= folded <= 500


def test_a_mixed_batch(collector: Collector) -> None:
    assert collector.observe_all([call(), call(-1), call(path="")]) == (1, 2)


def test_a_disabled_sdk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with pytest.raises(InvalidRequestError, match="OTEL_SDK_DISABLED"):
        Collector(max_label_values=5, max_series=20, max_label_length=64)


def test_labels_are_escaped_in_both_formats(collector: Collector) -> None:
    path = '/"quoted"\\back slash/é'
    collector.observe(call(path=path))
    text = render(collector.families()).body.decode()
    samples = [sample for family in parse(text) for sample in family.samples]
    assert {s.labels["path"] for s in samples if s.name == "api_call_count"} == {path}
    text = render(collector.families(), accept=OPENMETRICS).body.decode()
    families = {family.name: family for family in parse_openmetrics(text)}
    assert families["api_call"].type == "histogram"
    assert families["corral_metrics_reported_calls"].type == "counter"


def test_the_names_are_those_of_localai(collector: Collector) -> None:
    collector.observe(call())
    text = render(collector.families()).body.decode()
    assert "# TYPE api_call histogram" in text
    for suffix in ("_bucket", "_sum", "_count"):
        assert f"\napi_call{suffix}{{" in text
    assert 'le="0.005"' in text
    assert 'le="+Inf"' in text


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/plain; version=0.0.4"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0"),
        (f"{OPENMETRICS};q=0.5,text/plain;version=0.0.4;q=0.4", "application/openmetrics-text"),
        ("application/openmetrics-text; version=nonsense", "text/plain; version=0.0.4"),
    ],
)
def test_content_negotiation(collector: Collector, accept: str, expected: str) -> None:
    assert render(collector.families(), accept=accept).content_type.startswith(expected)


def test_selection() -> None:
    family = Family("b", "", "", Kind.COUNTER, {labels_of({"x": "1"}): 1.0})
    other = Family("a", "", "", Kind.GAUGE, {(): 2.0})
    assert [found.name for found in select([family, other])] == ["a", "b"]
    assert [found.name for found in select([family, other], ["b_total"])] == ["b"]
    assert select([family, other], ["a_total"]) == []
    assert [found.name for found in select([family, other], (), labels_of({"x": "1"}))] == ["b"]
    (empty,) = select([family], ["b"], labels_of({"x": "2"}))
    assert empty.series == {}
