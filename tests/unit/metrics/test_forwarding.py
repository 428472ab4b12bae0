import asyncio

import pytest
from structlog.testing import capture_logs

from services.common.errors import ServiceUnreachableError
from services.metrics.forwarding import Forwarding


class Collector:
    def __init__(self) -> None:
        self.pushes = 0
        self.down = False
        self.pushed = asyncio.Event()

    async def push(self) -> None:
        self.pushes += 1
        self.pushed.set()
        if self.down:
            raise ServiceUnreachableError("no answer")


async def test_values_are_pushed_at_intervals_and_at_the_end() -> None:
    collector = Collector()
    async with Forwarding(collector.push, interval=0.001):
        await asyncio.wait_for(collector.pushed.wait(), 5)
        before = collector.pushes
    assert collector.pushes > before or before > 1


async def test_values_are_pushed_on_demand_and_failures_are_raised() -> None:
    collector = Collector()
    async with Forwarding(collector.push, interval=60) as forwarding:
        await forwarding.flush()
        assert collector.pushes == 1
        collector.down = True
        with pytest.raises(ServiceUnreachableError):
            await forwarding.flush()
        collector.down = False
    assert collector.pushes == 3


async def test_a_collector_that_is_down_is_logged_once_until_the_end() -> None:
    collector = Collector()
    collector.down = True
    with capture_logs() as logs:
        async with Forwarding(collector.push, interval=0.001) as forwarding:
            while collector.pushes < 3:
                collector.pushed.clear()
                await asyncio.wait_for(collector.pushed.wait(), 5)
            collector.down = False
            await forwarding.flush()
    assert [line["event"] for line in logs] == [
        "metrics cannot be forwarded",
        "metrics are forwarded again",
    ]
