"""The reporter of calls, with a real metrics service that comes and goes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from corral.metrics.v1 import metrics_pb2 as pb
from corral.metrics.v1 import metrics_pb2_grpc
from corral.monitor.v1 import monitor_pb2_grpc
from corral.monitor.v1.monitor_pb2 import GetStatusRequest
from services.common.backoff import Backoff
from services.common.errors import ServiceUnreachableError
from services.common.rpc.call_records import CallRecord
from services.common.rpc.call_reporter import CallReporter
from services.common.rpc.channels import call, open_channel
from tests.tools.metrics_service import running, total
from tests.tools.service import installed, running_service
from tests.tools.waiting import eventually

QUICK = Backoff(initial=0.05, maximum=0.1)


def record(method: str = "/a.B/C", code: str = "OK", duration: float = 0.01) -> CallRecord:
    return CallRecord(
        method=method,
        kind="unary_unary",
        code=code,
        duration=duration,
        peer="ipv4:127.0.0.1:1",
        request_id="r",
        messages_in=1,
        messages_out=1,
    )


def reporter(address: str | None, **options: object) -> CallReporter:
    facts = {"interval": 0.02, "backoff": QUICK, "close_timeout": 2.0, **options}
    return CallReporter(address, "loader", **facts)  # type: ignore[arg-type]


class Sink(metrics_pb2_grpc.MetricsServiceServicer):
    """Counts what arrives."""

    def __init__(self) -> None:
        self.calls: list[pb.ApiCall] = []
        self.streams = 0
        self.address = ""
        self.held: asyncio.Event | None = None

    async def ObserveApiCalls(self, request_iterator: Any, context: Any) -> Any:
        self.streams += 1
        count = 0
        async for message in request_iterator:
            self.calls += message.calls
            count += len(message.calls)
        if self.held is not None:
            await self.held.wait()
        return pb.ObserveApiCallsResponse(accepted=count)

    @asynccontextmanager
    async def serving(self, address: str = "127.0.0.1:0") -> AsyncIterator[Sink]:
        server = aio.server(options=[("grpc.so_reuseport", 0)])
        metrics_pb2_grpc.add_MetricsServiceServicer_to_server(self, server)
        port = server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)


async def test_calls_arrive_with_their_labels() -> None:
    async with Sink().serving() as sink:
        async with reporter(sink.address) as observer:
            observer.call_ended(record(duration=1.5))
            observer.call_ended(record("/a.B/D", "NOT_FOUND"))
            await eventually(lambda: observer.reported == 2, what="the reports")
        first, second = sink.calls
        assert (first.method, first.path, first.status) == ("GRPC", "/a.B/C", "OK")
        assert first.service == "loader"
        assert first.duration.ToNanoseconds() == 1_500_000_000
        assert (second.path, second.status) == ("/a.B/D", "NOT_FOUND")


async def test_calls_go_together_and_in_order() -> None:
    async with Sink().serving() as sink:
        async with reporter(sink.address, interval=0.1) as observer:
            for index in range(1200):
                observer.call_ended(record(f"/a.B/{index}"))
        assert [call.path for call in sink.calls] == [f"/a.B/{index}" for index in range(1200)]
        assert sink.streams == 3
        assert (observer.reported, observer.dropped) == (1200, 0)


async def test_the_last_call_before_closing_arrives() -> None:
    async with Sink().serving() as sink:
        async with reporter(sink.address, interval=60.0) as observer:
            observer.call_ended(record())
        assert len(sink.calls) == 1


async def test_probes_and_its_own_reports_are_left_out() -> None:
    async with Sink().serving() as sink:
        async with reporter(sink.address) as observer:
            for method in (
                "/grpc.health.v1.Health/Check",
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                "/grpc.channelz.v1.Channelz/GetServers",
                "/corral.metrics.v1.MetricsService/ObserveApiCalls",
                "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
                "/corral.loader.v1.LoaderService/GetModel",
            ):
                observer.call_ended(record(method))
        assert [call.path for call in sink.calls] == ["/corral.loader.v1.LoaderService/GetModel"]


@pytest.mark.parametrize("address", [None, ""])
async def test_without_an_address_it_is_off(address: str | None) -> None:
    async with reporter(address) as observer:
        observer.call_ended(record())
        assert len(observer._waiting) == 0
    assert (observer.reported, observer.dropped) == (0, 0)


async def test_calls_wait_while_the_service_is_away() -> None:
    sink = Sink()
    async with sink.serving():
        pass
    async with reporter(sink.address) as observer:
        for _ in range(700):
            observer.call_ended(record())
        await eventually(lambda: observer._away, what="the reporter to notice")
        async with sink.serving(sink.address):
            await eventually(lambda: observer.reported == 700, what="all calls")
        assert len(sink.calls) == 700
        # And once more, on the same channel.
        observer.call_ended(record())
        await eventually(lambda: observer._away, what="the reporter to notice")
        async with sink.serving(sink.address):
            await eventually(lambda: observer.reported == 701, what="the call in between")
    assert observer.dropped == 0


async def test_a_full_queue_drops_calls_and_logs_it_once(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    async with sink.serving():
        pass
    async with reporter(sink.address, capacity=10) as observer:
        with caplog.at_level(logging.WARNING):
            for _ in range(50):
                observer.call_ended(record())
        assert observer.dropped == 40
        assert sum("not reported" in line.getMessage() for line in caplog.records) == 1
        async with sink.serving(sink.address):
            await eventually(lambda: observer.reported == 10, what="what was kept")


async def test_a_report_that_breaks_off_is_not_sent_twice() -> None:
    sink = Sink()
    sink.held = asyncio.Event()
    async with reporter("127.0.0.1:1"):
        pass
    async with sink.serving():
        async with reporter(sink.address, report_timeout=0.2) as observer:
            observer.call_ended(record())
            await eventually(lambda: observer.dropped == 1, what="the report to break off")
            sink.held.set()
            observer.call_ended(record("/a.B/D"))
            await eventually(lambda: observer.reported == 1, what="the next report")
        assert [call.path for call in sink.calls] == ["/a.B/C", "/a.B/D"]


async def test_closing_does_not_wait_for_a_service_that_is_away_or_hangs() -> None:
    begun = time.monotonic()
    async with reporter("127.0.0.1:1", interval=30.0, backoff=Backoff(30.0, 1.0, 30.0)) as observer:
        observer.call_ended(record())
    assert time.monotonic() - begun < 1
    sink = Sink()
    sink.held = asyncio.Event()
    async with sink.serving():
        begun = time.monotonic()
        async with reporter(sink.address, close_timeout=0.3, report_timeout=30.0) as observer:
            observer.call_ended(record())
        assert 0.2 < time.monotonic() - begun < 2
        assert observer.dropped == 1


async def test_keeping_a_call_costs_next_to_nothing() -> None:
    observer = CallReporter("127.0.0.1:1", "loader", capacity=100_000)
    one = record()
    best = min(timed(observer, one) for _ in range(5))
    # 0.3 us on a quiet machine; ten times that would slow down fast calls.
    assert best < 3e-6
    full = CallReporter("127.0.0.1:1", "loader", capacity=1)
    full.call_ended(one)
    full.call_ended(one)
    assert min(timed(full, one) for _ in range(5)) < 3e-6


def timed(observer: CallReporter, one: CallRecord) -> float:
    # The thread's own time: what other processes use meanwhile is not its cost.
    begun = time.thread_time()
    for _ in range(10_000):
        observer.call_ended(one)
    return (time.thread_time() - begun) / 10_000


async def test_the_real_service_is_killed_and_started_again(tmp_path: Path) -> None:
    counted = 0
    async with running(tmp_path / "1") as service:
        address = service.address
        observer = reporter(address)
        async with observer:
            for _ in range(100):
                observer.call_ended(record())
            await eventually(lambda: observer.reported == 100, what="the first calls")
            assert total((await service.scrape())["api_call"], "_count") == 100
            assert service.process is not None
            await service.process.end()
            slowest = 0.0
            for _ in range(100):
                begun = time.perf_counter()
                observer.call_ended(record())
                slowest = max(slowest, time.perf_counter() - begun)
                await asyncio.sleep(0)
            assert slowest < 0.05
            await eventually(lambda: observer._away, what="the reporter to notice")
            async with running(tmp_path / "2", listen=address) as again:
                await eventually(lambda: not observer._waiting, what="the calls in between")
                observer.call_ended(record("/a.B/Last"))
                await observer.__aexit__(None, None, None)
                scraped = (await again.scrape())["api_call"]
                counted = int(total(scraped, "_count"))
                paths = {sample.labels["path"] for sample in scraped.samples}
    assert "/a.B/Last" in paths
    # Reports in flight when the service died are lost, and counted as dropped.
    assert counted == observer.reported - 100 == 101 - observer.dropped


async def test_a_service_reports_its_calls_to_the_last(tmp_path: Path) -> None:
    async with running(tmp_path) as metrics:
        flags = ("--loader=127.0.0.1:1", f"--metrics={metrics.address}", f"--state-path={tmp_path}")
        async with running_service(
            "monitor", tmp_path, *flags, program=[installed("corral-monitor")]
        ) as monitor:
            async with open_channel(monitor.address) as channel:
                stub = monitor_pb2_grpc.MonitorServiceStub(channel)
                for _ in range(3):
                    with pytest.raises(ServiceUnreachableError):
                        await call(stub.GetStatus, GetStatusRequest(name="m"), timeout=10)
            assert await monitor.stop(10) == 0
        family = (await metrics.scrape())["api_call"]
        (count,) = (sample for sample in family.samples if sample.name == "api_call_count")
        assert count.labels == {
            "method": "GRPC",
            "path": "/corral.monitor.v1.MonitorService/GetStatus",
            "status": "UNAVAILABLE",
            "service": "monitor",
        }
        assert count.value == 3
