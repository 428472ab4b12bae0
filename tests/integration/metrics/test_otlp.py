"""OTLP, sent by OpenTelemetry's own SDK to the real service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from corral.metrics.v1.metrics_pb2 import FlushRequest
from services.common.errors import ServiceUnreachableError
from services.common.rpc.channels import call
from services.metrics.values.instruments import SECONDS
from tests.tools.metrics_service import DEADLINE, MetricsUnderTest, running, running_here, total
from tests.tools.processes import free_port
from tests.tools.waiting import eventually

LABELS = {"method": "GET", "path": "/v1/models", "status": "200"}


@pytest.fixture
async def inside(tmp_path: Path) -> AsyncIterator[MetricsUnderTest]:
    async with running_here(tmp_path) as made:
        yield made


class Sender:
    """A process that uses OpenTelemetry."""

    def __init__(self, name: str, *, delta: bool = False) -> None:
        self.name = name
        kind = sdk.AggregationTemporality.DELTA if delta else sdk.AggregationTemporality.CUMULATIVE
        kinds: dict[type, sdk.AggregationTemporality] = dict.fromkeys((Counter, Histogram), kind)
        self.reader = sdk.InMemoryMetricReader(preferred_temporality=kinds)
        self.provider = MeterProvider(
            [self.reader],
            resource=Resource({"service.name": name}),
            views=[
                View(
                    instrument_name="api_call",
                    aggregation=ExplicitBucketHistogramAggregation(boundaries=SECONDS),
                )
            ],
            shutdown_on_exit=False,
        )
        self.meter = self.provider.get_meter("test")

    def request(self) -> pb.ExportMetricsServiceRequest:
        request = pb.ExportMetricsServiceRequest()
        data = self.reader.get_metrics_data()
        assert data is not None
        out = request.resource_metrics.add()
        out.resource.attributes.add(
            key="service.name", value=common_pb2.AnyValue(string_value=self.name)
        )
        scope = out.scope_metrics.add()
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            made = scope.metrics.add(
                name=metric.name, unit=metric.unit or "", description=metric.description or ""
            )
            values: Any = metric.data
            temporality: Any = getattr(values, "aggregation_temporality", None)
            for point in values.data_points:
                facts = {
                    "attributes": [
                        common_pb2.KeyValue(
                            key=key, value=common_pb2.AnyValue(string_value=str(value))
                        )
                        for key, value in (point.attributes or {}).items()
                    ],
                    "start_time_unix_nano": point.start_time_unix_nano or 0,
                    "time_unix_nano": point.time_unix_nano,
                }
                if isinstance(values, sdk.Histogram):
                    made.histogram.aggregation_temporality = temporality
                    made.histogram.data_points.add(
                        count=point.count,
                        sum=point.sum,
                        bucket_counts=point.bucket_counts,
                        explicit_bounds=point.explicit_bounds,
                        **facts,
                    )
                elif isinstance(values, sdk.Sum):
                    made.sum.aggregation_temporality = temporality
                    made.sum.is_monotonic = values.is_monotonic
                    made.sum.data_points.add(as_int=point.value, **facts)
                else:
                    made.gauge.data_points.add(as_double=point.value, **facts)
        return request


async def export(
    service: MetricsUnderTest, request: pb.ExportMetricsServiceRequest
) -> pb.ExportMetricsServiceResponse:
    stub = metrics_service_pb2_grpc.MetricsServiceStub(service.channel)
    answer: pb.ExportMetricsServiceResponse = await stub.Export(request, timeout=DEADLINE)
    return answer


async def test_what_the_sdk_measures_is_on_the_scrape(inside: MetricsUnderTest) -> None:
    sender = Sender("web")
    requests = sender.meter.create_counter("http.requests", unit="1")
    sizes = sender.meter.create_histogram("body.size", unit="By")
    level = sender.meter.create_gauge("queue.length")
    for round_ in range(1, 4):
        requests.add(2, {"http.route": "/a"})
        sizes.record(70, {"kind": "in"})
        level.set(round_)
        response = await export(inside, sender.request())
        assert not response.HasField("partial_success")
        scraped = await inside.scrape()
        (sample,) = scraped["http_requests"].samples
        assert sample.name == "http_requests_total"
        assert sample.labels == {"http_route": "/a", "service": "web"}
        assert sample.value == 2 * round_
        assert total(scraped["body_size"], "_count") == round_
        assert total(scraped["queue_length"], "") == round_
    metric = (await inside.query("body_size"))["body_size"]
    assert metric.unit == "By"
    assert metric.series[0].histogram.count == 3
    accepted = await inside.query("corral_metrics_otlp_points", outcome="accepted")
    assert accepted["corral_metrics_otlp_points"].series[0].number == 9


@pytest.mark.parametrize("delta", [False, True])
async def test_api_calls_from_both_ways_are_one_metric(
    inside: MetricsUnderTest, delta: bool
) -> None:
    sender = Sender("web", delta=delta)
    calls = sender.meter.create_histogram("api_call", unit="s")
    await inside.observe("/v1/models", 0.3, method="GET", status="200", service="web")
    for _ in range(2):
        calls.record(0.02, LABELS)
        await export(inside, sender.request())
    family = (await inside.scrape())["api_call"]
    (count,) = (s for s in family.samples if s.name == "api_call_count")
    assert count.labels == {**LABELS, "service": "web"}
    assert count.value == 3
    assert total(family, "_sum") == pytest.approx(0.34)


async def test_invalid_points_are_reported_and_the_others_are_taken(
    inside: MetricsUnderTest,
) -> None:
    request = pb.ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    metrics.add(name="good").gauge.data_points.add(as_double=1.5)
    metrics.add(name="none").gauge.data_points.add(
        flags=metrics_pb2.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
    )
    metrics.add(name="exp").exponential_histogram.data_points.add(count=1)
    metrics.add(name="sums").summary.data_points.add(count=1)
    metrics.add(name="api_call").gauge.data_points.add(as_double=1.0)
    metrics.add(name="empty")
    response = await export(inside, request)
    assert response.partial_success.rejected_data_points == 3
    assert "exp: exponential_histogram" in response.partial_success.error_message
    assert "api_call: is a histogram already" in response.partial_success.error_message
    scraped = await inside.scrape()
    assert total(scraped["good"], "") == 1.5
    assert "none" not in scraped
    assert scraped.keys().isdisjoint({"exp", "sums", "empty", "api_call"})


async def test_what_was_exported_before_a_stop_is_kept(tmp_path: Path) -> None:
    sender = Sender("web")
    sender.meter.create_counter("c").add(7)
    async with running(tmp_path) as service:
        await export(service, sender.request())
        assert await service.stop() == 0
        assert b'c_total{service="web"} 7.0' in (service.state / "last.prom").read_bytes()


class Endpoint(metrics_service_pb2_grpc.MetricsServiceServicer):
    """A collector that keeps what it receives."""

    def __init__(self) -> None:
        self.requests: list[pb.ExportMetricsServiceRequest] = []
        self.address = ""

    async def Export(self, request: pb.ExportMetricsServiceRequest, context: object) -> object:
        self.requests.append(request)
        return pb.ExportMetricsServiceResponse()

    def count(self) -> int:
        """Return the number of calls in the latest push."""
        metrics = self.requests[-1].resource_metrics[0].scope_metrics[0].metrics
        (found,) = (metric for metric in metrics if metric.name == "api_call")
        return sum(point.count for point in found.histogram.data_points)

    @asynccontextmanager
    async def serving(self, address: str = "127.0.0.1:0") -> AsyncIterator[Endpoint]:
        server = aio.server(options=[("grpc.so_reuseport", 0)])
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(self, server)
        self.address = f"127.0.0.1:{server.add_insecure_port(address)}"
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)


async def test_values_are_pushed_at_intervals_on_demand_and_at_the_end(tmp_path: Path) -> None:
    async with Endpoint().serving() as endpoint:
        flags = (f"--otlp-endpoint={endpoint.address}", "--otlp-interval=100ms")
        async with running(tmp_path / "a", *flags) as service:
            await service.observe()

            def pushed() -> bool:
                return len(endpoint.requests) > 2 and endpoint.count() == 1

            await eventually(pushed, timeout=DEADLINE, what="the push")
        flags = (f"--otlp-endpoint={endpoint.address}", "--otlp-interval=1h")
        async with running(tmp_path / "b", *flags) as service:
            endpoint.requests.clear()
            await service.observe()
            await call(service.stub.Flush, FlushRequest(), timeout=DEADLINE)
            assert endpoint.count() == 1
            await service.observe()
            assert await service.stop() == 0
            assert endpoint.count() == 2


async def test_an_endpoint_that_is_away_loses_nothing(tmp_path: Path) -> None:
    endpoint = Endpoint()
    async with endpoint.serving():
        pass
    flags = (f"--otlp-endpoint={endpoint.address}", "--otlp-interval=100ms")
    async with running(tmp_path, *flags) as service:
        await service.observe()
        with pytest.raises(ServiceUnreachableError, match=endpoint.address):
            await call(service.stub.Flush, FlushRequest(), timeout=DEADLINE)
        async with endpoint.serving(endpoint.address):

            def pushed() -> bool:
                return bool(endpoint.requests) and endpoint.count() == 1

            await eventually(pushed, timeout=DEADLINE, what="the push")
        await service.observe()
        assert await service.stop() == 0
        assert b"api_call_count" in (service.state / "last.prom").read_bytes()


async def test_what_is_forwarded_arrives_in_another_metrics_service(tmp_path: Path) -> None:
    async with running_here(tmp_path / "b") as second:
        flags = (f"--otlp-endpoint={second.address}", "--otlp-interval=1h")
        async with running(tmp_path / "a", *flags) as first:
            await first.observe(seconds=0.3)
            for _ in range(3):
                await call(first.stub.Flush, FlushRequest(), timeout=DEADLINE)
        family = (await second.scrape())["api_call"]
        assert total(family, "_count") == 1
        assert total(family, "_sum") == pytest.approx(0.3)


async def test_forwarding_to_itself_counts_nothing_twice(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    flags = (f"--otlp-endpoint={address}", "--otlp-interval=1h")
    async with running(tmp_path, *flags, listen=address) as service:
        await service.observe()
        for _ in range(3):
            await call(service.stub.Flush, FlushRequest(), timeout=DEADLINE)
        assert total((await service.scrape())["api_call"], "_count") == 1
