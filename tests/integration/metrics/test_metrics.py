"""The metrics service in its own process: gRPC in, HTTP scrapes out."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from corral.metrics.v1 import metrics_pb2 as pb
from services.common.errors import InvalidRequestError
from services.common.rpc.channels import call
from tests.tools.metrics_service import (
    DEADLINE,
    MetricsUnderTest,
    api_call,
    parsed,
    running,
    running_here,
    total,
)
from tests.tools.service import installed
from tests.tools.waiting import eventually


@pytest.fixture
async def inside(tmp_path: Path) -> AsyncIterator[MetricsUnderTest]:
    async with running_here(tmp_path) as made:
        yield made


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[MetricsUnderTest]:
    async with running(tmp_path) as made:
        yield made


async def test_what_was_answered_is_on_the_next_scrape(service: MetricsUnderTest) -> None:
    for count in range(1, 6):
        await service.observe(seconds=0.25)
        family = (await service.scrape())["api_call"]
        assert total(family, "_count") == count
        assert total(family, "_sum") == pytest.approx(0.25 * count)
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name == "api_call_bucket"}
    assert (buckets["0.1"], buckets["0.25"], buckets["+Inf"]) == (0, 5, 5)
    (labels,) = (s.labels for s in family.samples if s.name == "api_call_count")
    assert labels == {"method": "GRPC", "path": "/a.B/C", "status": "OK", "service": "loader"}


async def test_ten_thousand_calls_at_once(service: MetricsUnderTest) -> None:
    async def observe(worker: int) -> None:
        for index in range(100):
            await service.observe(f"/s.S/M{index % 10}", 0.001 * worker, status=f"S{worker % 3}")

    async def scrape() -> None:
        for _ in range(10):
            await service.scrape()

    # 100 at a time: the limit of streams per connection.
    await asyncio.gather(scrape(), *(observe(worker) for worker in range(100)))
    scraped = await service.scrape()
    family = scraped["api_call"]
    assert total(family, "_count") == 10_000
    assert total(family, "_sum") == pytest.approx(sum(0.1 * worker for worker in range(100)))
    assert sum(1 for s in family.samples if s.name == "api_call_count") == 30
    # The query returns the same numbers.
    metric = (await service.query("api_call"))["api_call"]
    assert metric.type == pb.Metric.TYPE_HISTOGRAM
    assert metric.unit == "s"
    queried = {
        tuple(sorted(series.labels.items())): (series.histogram.count, series.histogram.sum)
        for series in metric.series
    }
    counts = {key(s.labels): s.value for s in family.samples if s.name == "api_call_count"}
    sums = {key(s.labels): s.value for s in family.samples if s.name == "api_call_sum"}
    assert queried == {labels: (counts[labels], sums[labels]) for labels in counts}
    for series in metric.series:
        assert sum(series.histogram.bucket_counts) == series.histogram.count
        assert len(series.histogram.bucket_counts) == len(series.histogram.bounds) + 1
    flushed = await call(service.stub.Flush, pb.FlushRequest(), timeout=DEADLINE)
    assert flushed.recorded_calls == 10_000


def key(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


async def test_querying(inside: MetricsUnderTest) -> None:
    await inside.observe("/x/Y", service="loader")
    await inside.observe("/x/Z", service="gallery")
    everything = await inside.query()
    assert list(everything) == sorted(everything)
    assert {"api_call", "corral_build_info", "corral_metrics_reported_calls"} <= set(everything)
    some = await inside.query(service="gallery")
    assert list(some) == ["api_call"]
    assert [s.labels["path"] for s in some["api_call"].series] == ["/x/Z"]
    counter = (await inside.query("corral_metrics_reported_calls_total", outcome="accepted"))[
        "corral_metrics_reported_calls"
    ]
    assert counter.type == pb.Metric.TYPE_COUNTER
    assert [s.number for s in counter.series] == [2.0]
    assert await inside.query("nope") == {}
    with pytest.raises(InvalidRequestError, match="label"):
        await inside.query(**{"not a label": "x"})


async def test_bad_calls(inside: MetricsUnderTest) -> None:
    for bad, field in (
        (pb.ApiCall(), "method"),
        (api_call(""), "path"),
        (api_call(status=""), "status"),
        (api_call(seconds=-1), "duration"),
        (api_call("/" + "x" * 1000), "path"),
        (pb.ApiCall(method="G", path="p", status="s", duration=Duration(nanos=2 * 10**9)), "dura"),
    ):
        with pytest.raises(InvalidRequestError, match=f"call.{field}"):
            await call(
                inside.stub.ObserveApiCall, pb.ObserveApiCallRequest(call=bad), timeout=DEADLINE
            )
    assert "api_call" not in await inside.scrape()


async def test_a_stream_of_calls(inside: MetricsUnderTest) -> None:
    stream = inside.stub.ObserveApiCalls(timeout=DEADLINE)
    for _ in range(3):
        calls = [api_call()] * 700 + [api_call("")]
        await stream.write(pb.ObserveApiCallsRequest(calls=calls))
    # Each message counts on arrival, not when the stream ends.

    async def arrived() -> bool:
        scraped = await inside.scrape()
        return "api_call" in scraped and total(scraped["api_call"], "_count") == 2100

    await eventually(arrived, timeout=DEADLINE, what="2100 calls on the scrape")
    await stream.done_writing()
    response = await stream
    assert (response.accepted, response.rejected) == (2100, 3)


async def test_a_broken_stream_keeps_what_it_sent(inside: MetricsUnderTest) -> None:
    stream = inside.stub.ObserveApiCalls(timeout=DEADLINE)
    await stream.write(pb.ObserveApiCallsRequest(calls=[api_call()] * 5))

    async def arrived() -> bool:
        return "api_call" in await inside.scrape()

    await eventually(arrived, timeout=DEADLINE, what="the calls on the scrape")
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream
    assert total((await inside.scrape())["api_call"], "_count") == 5


async def test_the_number_of_series_is_bounded(tmp_path: Path) -> None:
    async with running(tmp_path, "--max-label-values=10", "--max-series=15") as service:
        stream = service.stub.ObserveApiCalls(timeout=DEADLINE)
        calls = [api_call(f"/{i}", status=str(i % 50)) for i in range(5000)]
        await stream.write(pb.ObserveApiCallsRequest(calls=calls))
        await stream.done_writing()
        assert (await stream).accepted == 5000
        scraped = await service.scrape()
        family = scraped["api_call"]
        assert sum(1 for s in family.samples if s.name == "api_call_count") <= 16
        assert total(family, "_count") == 5000
        assert total(scraped["corral_metrics_folded_observations"], "_total") > 4000


async def test_http(inside: MetricsUnderTest) -> None:
    await inside.observe()
    status, headers, body = await inside.get()
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert int(headers["content-length"]) == len(body)
    status, headers, nothing = await inside.get(method="HEAD")
    assert (status, nothing) == (200, b"")
    assert int(headers["content-length"]) == len(body)
    status, headers, packed = await inside.get("/metrics", "Accept-Encoding: gzip, deflate")
    assert headers["content-encoding"] == "gzip"
    assert parsed(gzip.decompress(packed)).keys() == parsed(body).keys()
    accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    status, headers, body = await inside.get("/metrics", accept)
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert (await inside.get("/healthz"))[::2] == (200, b"ok\n")
    assert (await inside.get("/nope"))[0] == 404
    status, headers, _ = await inside.get(method="DELETE")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert (await inside.raw(b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    assert (await inside.raw(b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000)).startswith(b"HTTP/1.1 431 ")


async def test_http_connections_are_kept_and_bounded(tmp_path: Path) -> None:
    flags = ("--http-max-connections=2", "--http-head-timeout=1s")
    async with running(tmp_path, *flags) as service:
        two = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 2
        # Two answers on one connection, which is closed once no more requests come.
        assert (await service.raw(two)).count(b"HTTP/1.1 200 OK") == 2
        host, _, port = service.http.rpartition(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        assert (await service.get("/healthz"))[0] == 503
        for _, writer in held:
            writer.close()
            await writer.wait_closed()

        async def free() -> bool:
            return (await service.get("/healthz"))[0] == 200

        await eventually(free, timeout=DEADLINE, what="the connections to be given back")


async def test_the_last_call_before_a_stop_is_kept(service: MetricsUnderTest) -> None:
    await service.observe("/before/Scrape")
    assert total((await service.scrape())["api_call"], "_count") == 1
    flushes = [call(service.stub.Flush, pb.FlushRequest(), timeout=DEADLINE) for _ in range(2)]
    assert [flushed.recorded_calls for flushed in await asyncio.gather(*flushes)] == [1, 1]
    await service.observe("/after/Scrape")
    assert await service.stop() == 0
    last = parsed((service.state / "last.prom").read_bytes())
    assert total(last["api_call"], "_count") == 2
    assert not (service.state / "http_address").exists()


async def test_a_stop_does_not_wait_for_open_streams_and_loses_nothing(
    service: MetricsUnderTest,
) -> None:
    stream = service.stub.ObserveApiCalls()
    await stream.write(pb.ObserveApiCallsRequest(calls=[api_call()]))

    async def arrived() -> bool:
        return "api_call" in await service.scrape()

    # A call that the stopping server has not accepted yet is cancelled, so it is not acknowledged.
    await eventually(arrived, timeout=DEADLINE, what="the first call on the scrape")
    for _ in range(10):
        await stream.write(pb.ObserveApiCallsRequest(calls=[api_call()] * 100))
    stopping = asyncio.ensure_future(service.stop())
    response = await stream
    assert response.accepted == 1001
    assert await stopping == 0
    last = parsed((service.state / "last.prom").read_bytes())
    assert total(last["api_call"], "_count") == 1001


async def test_calls_that_were_answered_during_a_stop_are_counted(
    service: MetricsUnderTest,
) -> None:
    await service.observe()

    async def observe() -> bool:
        try:
            await stub.ObserveApiCall(request, timeout=DEADLINE)
        except aio.AioRpcError as error:
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            return False
        return True

    stub, request = service.stub, pb.ObserveApiCallRequest(call=api_call())
    calls = [asyncio.ensure_future(observe()) for _ in range(200)]
    assert await service.stop() == 0
    answered = sum(await asyncio.gather(*calls))
    last = parsed((service.state / "last.prom").read_bytes())
    # Acknowledged calls are counted; the others may be.
    assert 1 + answered <= total(last["api_call"], "_count") <= 201


async def test_a_stop_does_not_wait_for_idle_or_stalled_scrapers(service: MetricsUnderTest) -> None:
    host, _, port = service.http.rpartition(":")
    idle = await asyncio.open_connection(host, int(port))
    half = await asyncio.open_connection(host, int(port))
    half[1].write(b"GET /metrics HTTP/1.1\r\n")
    await service.scrape()
    begun = time.monotonic()
    assert await service.stop() == 0
    assert time.monotonic() - begun < 3
    for _, writer in (idle, half):
        writer.close()


async def test_scrapes_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with running(tmp_path, f"--http-listen=unix:{path}") as service:
        assert service.http == f"unix:{path}"
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(DEADLINE):
            assert (await reader.read()).endswith(b"ok\n")
        writer.close()
        assert await service.stop() == 0
        assert not path.exists()


async def test_an_address_that_is_taken(tmp_path: Path, inside: MetricsUnderTest) -> None:
    process = await asyncio.create_subprocess_exec(
        installed("corral-metrics"),
        "--listen=127.0.0.1:0",
        f"--http-listen={inside.http}",
        f"--state-path={tmp_path / 'other'}",
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"--http-listen" in errors
