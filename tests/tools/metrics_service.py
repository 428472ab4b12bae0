"""A metrics service for tests, in its own process or in the test's, and its clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from grpc import aio
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from corral.metrics.v1 import metrics_pb2 as pb
from corral.metrics.v1 import metrics_pb2_grpc
from services.common.rpc.channels import call, open_channel
from services.common.rpc.health import HealthServicer
from services.common.rpc.server import serving
from services.metrics.config import MetricsSettings
from services.metrics.wiring import build
from tests.tools.service import Service, installed, running_service

DEADLINE = 10.0


@dataclass
class MetricsUnderTest:
    """A running metrics service."""

    process: Service | None
    address: str
    http: str
    state: Path
    channel: aio.Channel
    stub: metrics_pb2_grpc.MetricsServiceAsyncStub

    async def observe(self, path: str = "/a.B/C", seconds: float = 0.02, **labels: str) -> None:
        request = pb.ObserveApiCallRequest(call=api_call(path, seconds, **labels))
        await call(self.stub.ObserveApiCall, request, timeout=DEADLINE)

    async def query(self, *names: str, **labels: str) -> dict[str, pb.Metric]:
        request = pb.QueryMetricsRequest(names=names, labels=labels)
        response = await call(self.stub.QueryMetrics, request, timeout=DEADLINE)
        return {metric.name: metric for metric in response.metrics}

    async def get(
        self, path: str = "/metrics", *headers: str, method: str = "GET"
    ) -> tuple[int, dict[str, str], bytes]:
        lines = (f"{method} {path} HTTP/1.1", "Host: test", "Connection: close", *headers, "", "")
        answer = await self.raw("\r\n".join(lines).encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in rest)
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}, body

    async def raw(self, sent: bytes) -> bytes:
        host, _, port = self.http.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(sent)
            async with asyncio.timeout(DEADLINE):
                return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()

    async def scrape(self) -> dict[str, Metric]:
        status, _, body = await self.get()
        assert status == 200
        return parsed(body)

    async def stop(self) -> int:
        assert self.process is not None
        return await self.process.stop(DEADLINE)


def api_call(path: str = "/a.B/C", seconds: float = 0.02, **labels: str) -> pb.ApiCall:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    facts = {"method": "GRPC", "status": "OK", "service": "loader", **labels}
    return pb.ApiCall(path=path, duration=duration, **facts)


def parsed(text: bytes) -> dict[str, Metric]:
    """Parse a scrape; fail on a repeated family or series."""
    families = list(text_string_to_metric_families(text.decode()))
    names = Counter(family.name for family in families)
    assert max(names.values()) == 1
    series = Counter(
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in families
        for sample in family.samples
    )
    assert max(series.values()) == 1
    return {family.name: family for family in families}


def total(family: Metric, suffix: str) -> float:
    return sum(s.value for s in family.samples if s.name == family.name + suffix)


@asynccontextmanager
async def running(
    state: Path, *flags: str, listen: str = "127.0.0.1:0"
) -> AsyncIterator[MetricsUnderTest]:
    """Run the installed command."""
    arguments = (
        f"--listen={listen}",
        "--http-listen=127.0.0.1:0",
        f"--state-path={state}",
        "--log-level=error",
        *flags,
    )
    async with (
        running_service(
            "metrics", state, *arguments, program=[installed("corral-metrics")]
        ) as process,
        open_channel(process.address) as channel,
    ):
        yield MetricsUnderTest(
            process=process,
            address=process.address,
            http=(state / "metrics" / "http_address").read_text().strip(),
            state=state / "metrics",
            channel=channel,
            stub=metrics_pb2_grpc.MetricsServiceStub(channel),
        )


@asynccontextmanager
async def running_here(state: Path) -> AsyncIterator[MetricsUnderTest]:
    """Run it in this process, which starts at once, for tests that do not need a separate one."""
    settings = MetricsSettings(
        listen="127.0.0.1:0", http_listen="127.0.0.1:0", state_path=state, grace=1.0
    )
    health = HealthServicer()
    async with AsyncExitStack() as stack:
        mounts = await build(settings, stack, health)
        async with (
            serving(name="metrics", settings=settings, mounts=mounts, health=health) as server,
            open_channel(server.address) as channel,
        ):
            yield MetricsUnderTest(
                process=None,
                address=server.address,
                http=(state / "metrics" / "http_address").read_text().strip(),
                state=state / "metrics",
                channel=channel,
                stub=metrics_pb2_grpc.MetricsServiceStub(channel),
            )
