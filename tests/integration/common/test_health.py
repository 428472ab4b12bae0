"""The health service over a real connection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from services.common.config.settings import ServiceSettings
from services.common.rpc.channels import open_channel
from services.common.rpc.health import HealthServicer
from services.common.rpc.server import serving
from tests.tools.waiting import eventually

DEADLINE = 5.0
UNKNOWN, SERVING, NOT_SERVING = 3, 1, 2


class World:
    def __init__(self, health: HealthServicer, channel: aio.Channel) -> None:
        self.health = health
        self.stub = health_pb2_grpc.HealthStub(channel)

    def watch(self, service: str) -> Any:
        return self.stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=60)

    async def check(self, service: str) -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        return int((await self.stub.Check(request, timeout=DEADLINE)).status)


async def read(stream: Any) -> Any:
    """Return the next status, or None at the end of the stream."""
    async with asyncio.timeout(DEADLINE):
        reply = await stream.read()
    return None if reply is aio.EOF else reply.status


@pytest.fixture
async def world() -> AsyncIterator[World]:
    health = HealthServicer()
    settings = ServiceSettings(grace=1)
    async with (
        serving(name="test", settings=settings, mounts=[], health=health) as server,
        open_channel(server.address) as channel,
    ):
        yield World(health, channel)


async def test_check(world: World) -> None:
    world.health.set("a", True)
    world.health.set("b", False, "its model crashed")
    assert [await world.check(name) for name in ("", "a", "b")] == [SERVING, SERVING, NOT_SERVING]
    with pytest.raises(grpc.RpcError) as caught:
        await world.check("c")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    world.health.forget("b")
    with pytest.raises(grpc.RpcError):
        await world.check("b")


async def test_a_watcher_sees_changes_of_a_service_that_comes_and_goes(world: World) -> None:
    stream = world.watch("a")
    assert await read(stream) == UNKNOWN
    world.health.set("a", False, "starting")
    assert await read(stream) == NOT_SERVING
    world.health.set("a", True, "started")
    assert await read(stream) == SERVING
    world.health.forget("a")
    assert await read(stream) == UNKNOWN


async def test_a_watcher_that_leaves_takes_nothing_from_the_others(world: World) -> None:
    world.health.set("a", True)
    streams = [world.watch("a") for _ in range(5)]
    assert [await read(stream) for stream in streams] == [SERVING] * 5
    streams[0].cancel()
    streams[3].cancel()
    rest = [streams[1], streams[2], streams[4]]
    for number in range(6):
        serving_now = number % 2 == 1
        world.health.set("a", serving_now)
        expected = SERVING if serving_now else NOT_SERVING
        assert [await read(stream) for stream in rest] == [expected] * 3


async def test_a_slow_watcher_delays_no_other(world: World) -> None:
    world.health.set("a", True)
    slow, quick = world.watch("a"), world.watch("a")
    assert await read(quick) == SERVING
    for number in range(1000):
        world.health.set("a", number % 2 == 1)
    world.health.set("a", False, "the last word")
    seen = await read(quick)
    while seen != NOT_SERVING:
        seen = await read(quick)
    # It has read nothing yet, but it also gets the last state.
    seen = await read(slow)
    while seen != NOT_SERVING:
        seen = await read(slow)


async def test_shutting_down_is_for_ever_and_ends_the_watches(world: World) -> None:
    world.health.set("a", True)
    streams = {name: world.watch(name) for name in ("", "a", "unknown")}
    first = {name: await read(stream) for name, stream in streams.items()}
    assert first == {"": SERVING, "a": SERVING, "unknown": UNKNOWN}
    world.health.shut_down()
    world.health.shut_down()
    world.health.set("a", True, "too late")
    world.health.set("new", True, "too late")
    world.health.forget("a")
    assert await read(streams[""]) == NOT_SERVING
    assert await read(streams["a"]) == NOT_SERVING
    assert [await read(stream) for stream in streams.values()] == [None] * 3
    assert await world.check("a") == NOT_SERVING
    late = world.watch("a")
    assert [await read(late), await read(late)] == [NOT_SERVING, None]
    assert world.health.stopping.is_set()


async def test_watchers_leave_nothing_behind(world: World) -> None:
    world.health.set("a", True)
    streams = [world.watch("a") for _ in range(3)]
    assert [await read(stream) for stream in streams] == [SERVING] * 3
    for stream in streams:
        stream.cancel()
    await eventually(lambda: not world.health.watched, timeout=DEADLINE, what="no watchers")


def test_changes_are_logged_with_their_reason_and_repetitions_are_not() -> None:
    health = HealthServicer()
    with capture_logs() as lines:
        health.set("a", True, "loaded")
        health.set("a", True, "loaded")
        health.set("a", False, "crashed")
    assert [(line["health_of"], line["serving"], line["why"]) for line in lines] == [
        ("a", True, "loaded"),
        ("a", False, "crashed"),
    ]
    assert health.statuses == {"a": False}
