"""Which calls wait and which are refused when a model has more calls than slots.

With real processes and real clients.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from corral.backend import backend_pb2_grpc
from tests.tools.loader_calls import READY, begin, load, model, named, prompt, refused, unload
from tests.tools.running import LoaderUnderTest, eventually

AT_ONCE = 0.5
"""Seconds within which a refusal comes even on a busy machine, and a queued call does not end."""


@pytest.fixture
async def other(loader: LoaderUnderTest) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Channels for other clients, closed at the end."""
    channels: list[grpc.aio.Channel] = []
    yield channels
    for channel in channels:
        await channel.close()


def predict(data: Any, *, client: str = "", timeout: float | None = 60) -> Any:
    metadata = (*named("m"), *((("corral-client", client),) if client else ()))
    return data.Predict(prompt("x"), metadata=metadata, timeout=timeout)


async def waiting(loader: LoaderUnderTest, count: int) -> None:
    async def there() -> bool:
        return (await model(loader)).queued_calls == count

    await eventually(there, timeout=30, what=f"{count} queued calls")


async def end(calls: list[Any]) -> None:
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_one_call_is_not_starved_by_five_hundred(
    loader: LoaderUnderTest, other: list[grpc.aio.Channel]
) -> None:
    loader.add_backend("fake", call_seconds=0.2)
    loader.add_model("m", "fake", options=["parallel:1"])
    await loader.start()
    await loader.control.LoadModel(load())
    many = [asyncio.ensure_future(predict(loader.data)) for _ in range(500)]

    async def most_wait() -> bool:
        return (await model(loader)).queued_calls > 450

    await eventually(most_wait, timeout=30, what="a long queue")
    options = [("grpc.use_local_subchannel_pool", 1)]
    other.append(grpc.aio.insecure_channel(loader.service.address, options=options))
    before = sum(call.done() for call in many)
    await predict(backend_pb2_grpc.BackendStub(other[0]))
    assert sum(call.done() for call in many) - before <= 4, "its turn came after one of the others"
    await end(many)


async def test_a_full_queue_has_room_for_who_has_less_of_it(loader: LoaderUnderTest) -> None:
    await begin(loader, "m", limits={"max_concurrent": 1})
    loader.behave("fake", call="hang")
    await loader.start("--queue-size", "3")
    many = []
    for count in range(4):
        many.append(asyncio.ensure_future(predict(loader.data, client="many")))
        await waiting(loader, count) if count else await eventually(
            lambda: loader.notes("fake"), what="the load"
        )
        if not count:
            await eventually(lambda: _runs(loader), what="the first call")
    one = asyncio.ensure_future(predict(loader.data, client="one"))
    error = await refused(many.pop())
    assert error.reason == "QUEUE_FULL" and error.retry_after
    assert error.metadata["queue_length"] == "3"
    await waiting(loader, 3)
    assert not one.done()
    again = await refused(predict(loader.data, client="many"))
    assert again.reason == "QUEUE_FULL"
    await end([*many, one])


async def test_a_deadline_that_cannot_be_met_is_told_at_once(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", call_seconds=0.2)
    loader.add_model("m", "fake", options=["parallel:2"])
    await loader.start()
    await asyncio.gather(*(predict(loader.data) for _ in range(10)))
    queued = [asyncio.ensure_future(predict(loader.data)) for _ in range(12)]
    await waiting(loader, 10)
    began = time.monotonic()
    error = await refused(predict(loader.data, timeout=0.6))
    assert time.monotonic() - began < AT_ONCE
    assert error.reason == "DEADLINE_TOO_SHORT"
    assert error.retry_after and 0.6 < error.retry_after < 5
    assert {"queue_length", "position", "expected_wait_seconds"} <= error.metadata.keys()
    # The other client gets its turn in time.
    await predict(loader.data, client="another", timeout=2)
    await asyncio.gather(*queued)


async def test_a_load_that_outlasts_a_deadline_is_begun_all_the_same(
    loader: LoaderUnderTest,
) -> None:
    loader.add_backend("fake", load_seconds=1.2)
    loader.add_model("m", "fake")
    await loader.start()
    for _ in range(2):  # one load does not predict the next
        await predict(loader.data)
        await loader.control.UnloadModel(unload())
    began = time.monotonic()
    error = await refused(predict(loader.data, timeout=0.5))
    assert time.monotonic() - began < AT_ONCE
    assert error.reason == "DEADLINE_TOO_SHORT" and error.retry_after and error.retry_after > 1

    async def ready() -> bool:
        return bool((await model(loader)).state == READY)

    await eventually(ready, what="the load that nobody waits for")
    await predict(loader.data, timeout=1.0)


async def test_who_is_queued_is_told_its_position_while_it_waits(loader: LoaderUnderTest) -> None:
    await begin(loader, "m", limits={"max_concurrent": 1})
    loader.behave("fake", call="hang")
    await loader.start()
    first = predict(loader.data)
    await eventually(lambda: _runs(loader), what="the first call")
    streams = []
    for position in (1, 2):
        # A unary call gets it too, but grpc.aio holds it back until the answer comes.
        streams.append(loader.data.PredictStream(prompt("x"), metadata=named("m")))
        metadata = await asyncio.wait_for(streams[-1].initial_metadata(), 2)
        assert dict(metadata)["corral-queue-position"] == str(position)
    for stream in streams:
        stream.cancel()
    await end([first])


async def _runs(loader: LoaderUnderTest) -> bool:
    instances = (await model(loader)).instances
    return bool(instances and instances[0].active_calls)
