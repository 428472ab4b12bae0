"""Limits on calls and loads, watchdogs and drains, with real processes: what ends, what waits."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from corral.loader.v1 import loader_pb2 as pb
from services.common.rpc.status import from_rpc_error
from tests.tools.loader_calls import (
    FOREVER,
    READY,
    UNLOADED,
    begin,
    change,
    load,
    model,
    named,
    prompt,
    refused,
    states,
)
from tests.tools.running import LoaderUnderTest, eventually


async def test_the_idle_watchdog(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b")
    await loader.start("--watchdog-interval", "50ms", "--watchdog-idle-timeout", "400ms")
    await loader.control.LoadModel(load("a"))
    stream = loader.data.PredictStream(FOREVER, metadata=named("b"))
    await stream.read()
    await change(loader, watchdog_idle=True)

    async def gone() -> bool:
        # Reading its status does not count as use.
        return (await states(loader))["a"] == UNLOADED

    await eventually(gone, what="unload of the idle model")
    unload = (await model(loader, "a")).last_unload
    assert unload.cause == pb.Unload.CAUSE_IDLE and "watchdog_idle_timeout" in unload.message
    assert (await states(loader))["b"] == READY, "a stream keeps its model"
    stream.cancel()


async def test_the_busy_watchdog_ends_what_is_stuck_and_not_what_delivers(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "stuck", "alive")
    await loader.start(
        "--enable-watchdog-busy",
        "--watchdog-busy-timeout", "600ms",
        "--watchdog-interval", "50ms",
    )  # fmt: skip
    stream = loader.data.PredictStream(FOREVER, metadata=named("alive"))
    await stream.read()
    for name in ("stuck", "alive"):
        await loader.control.LoadModel(load(name))
    hanging = asyncio.ensure_future(
        refused(loader.data.Predict(prompt("wait"), metadata=named("stuck")))
    )
    while not hanging.done():
        assert await stream.read()
    assert "no progress" in hanging.result().message
    await eventually(lambda: _is(loader, "stuck", UNLOADED), what="end of the stuck backend")
    assert (await model(loader, "stuck")).last_unload.cause == pb.Unload.CAUSE_BUSY
    assert (await states(loader))["alive"] == READY
    stream.cancel()


async def test_the_memory_reclaimer(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b")
    await loader.start("--watchdog-interval", "50ms")
    for name in "ab":
        await loader.control.LoadModel(load(name))

    async def measured() -> bool:
        found = [(await model(loader, name)).memory for name in "ab"]
        return all(m and m[0].basis == pb.MemoryReservation.BASIS_MEASURED for m in found)

    await eventually(measured, what="measures of both")
    await change(loader, memory_reclaimer=True, memory_reclaimer_threshold=1e-6)

    async def one_gone() -> bool:
        return UNLOADED in (await states(loader)).values()

    await eventually(one_gone, what="reclaiming")
    assert sorted((await states(loader)).values()) == [UNLOADED, READY], "one at a time"
    unload = (await model(loader, "a")).last_unload
    assert unload.cause == pb.Unload.CAUSE_MEMORY and "ram" in unload.message


async def test_calls_at_once_and_the_queue(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", token_seconds=0.02)
    loader.add_model(
        "m", "fake", limits={"max_concurrent": 1, "retry_after_seconds": 7}, options=["parallel:4"]
    )
    await loader.start("--queue-size", "2")
    first = loader.data.PredictStream(FOREVER, metadata=named("m"))
    await first.read()
    queued = [asyncio.ensure_future(_predict(loader, "m")) for _ in range(2)]

    async def both_wait() -> bool:
        return (await model(loader, "m")).queued_calls == 2

    await eventually(both_wait, what="two queued calls")
    assert (await model(loader, "m")).max_concurrent_calls == 1
    error = await refused(_predict(loader, "m"))
    assert error.reason == "QUEUE_FULL" and error.retry_after == 7
    assert error.metadata["queue_length"] == "2"
    queued.pop().cancel()
    await eventually(lambda: _queued(loader, "m", 1), what="the place of who left")
    # Status and loads need no slot.
    await loader.control.LoadModel(load("m"), timeout=5)
    first.cancel()
    await asyncio.wait_for(queued[0], 5)


async def test_parallel_n_is_how_many_run_at_once(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake")
    loader.add_model("m", "fake", options=["parallel:3", "other:1"])
    await loader.start()
    assert (await model(loader, "m")).max_concurrent_calls == 3


async def test_the_ceiling_over_all_models(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b")
    await loader.start("--max-concurrent-backend-requests", "2")
    streams = [loader.data.PredictStream(FOREVER, metadata=named(name)) for name in "ab"]
    for stream in streams:
        await stream.read()
    error = await refused(_predict(loader, "a"))
    assert error.reason == "QUEUE_FULL" and "max_concurrent_backend_requests" in error.message
    for stream in streams:
        stream.cancel()
    await eventually(lambda: _works(loader, "a"), what="a free place")


async def test_loads_have_a_budget(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", load_seconds=0.3)
    for name in "abc":
        loader.add_model(name, "fake")
    await loader.start("--parallel-loads", "1")
    loads = [asyncio.ensure_future(loader.control.LoadModel(load(name))) for name in "abc"]

    async def two_wait() -> bool:
        capacity = await loader.control.GetCapacity(pb.GetCapacityRequest())
        return (capacity.loads, len(capacity.waiting)) == (1, 2)

    await eventually(two_wait, what="two loads waiting for a slot")
    await asyncio.gather(*loads)
    assert set((await states(loader)).values()) == {READY}


async def test_a_crash_loop_is_quarantined_until_somebody_knows_better(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "a")
    await loader.start("--model-load-failure-cooldown", "10ms", "--load-backoff-maximum", "10ms")

    async def crashed_often() -> bool:
        error = await refused(loader.data.Predict(prompt("crash"), metadata=named("a")))
        assert error.reason in ("BACKEND_CRASHED", "LOAD_BACKOFF", "CRASH_LOOP")
        return error.reason == "CRASH_LOOP"

    await eventually(crashed_often, timeout=30, what="quarantine")
    found = await model(loader, "a")
    assert found.crash_count == 5 and found.state == pb.Model.STATE_BACKOFF
    error = await refused(loader.control.LoadModel(load("a")))
    assert error.reason == "CRASH_LOOP" and error.retry_after and error.retry_after > 60
    assert "reset_backoff" in error.message
    await loader.control.LoadModel(load("a", reset_backoff=True))
    assert (await model(loader, "a")).crash_count == 0


async def test_drain_lets_calls_end_and_refuses_new_ones(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", token_seconds=0.02)
    for name in "ab":
        loader.add_model(name, "fake")
    await loader.start()
    await loader.control.LoadModel(load("b"))
    stream = loader.data.PredictStream(FOREVER, metadata=named("a"))
    await stream.read()
    drain = asyncio.ensure_future(
        loader.control.Drain(pb.DrainRequest(timeout=Duration(seconds=1)))
    )
    await eventually(lambda: _refuses(loader), what="refusal of new calls")
    assert await stream.read()
    assert (await drain).cut_calls == 1
    assert set((await states(loader)).values()) == {UNLOADED}
    assert (await model(loader, "b")).last_unload.cause == pb.Unload.CAUSE_SHUTDOWN
    assert (await loader.control.Drain(pb.DrainRequest())).cut_calls == 0


async def test_models_to_load_at_the_start(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b")
    await loader.start("--load-to-memory", "a", "--load-to-memory", "missing")
    await eventually(lambda: _is(loader, "a", READY), what="the preloaded model")
    assert (await states(loader))["b"] == UNLOADED
    assert "missing" in loader.service.log.read_text()


async def test_an_unload_may_be_forced_in_the_end(loader: LoaderUnderTest) -> None:
    await begin(loader, "a")
    await loader.start("--force-backend-shutdown", "--drain-timeout", "200ms")
    stream = loader.data.PredictStream(FOREVER, metadata=named("a"))
    await stream.read()
    await loader.control.UnloadModel(pb.UnloadModelRequest(name="a"))
    assert (await model(loader, "a")).last_unload.forced


async def _predict(loader: LoaderUnderTest, name: str) -> Any:
    return await loader.data.Predict(prompt("x"), metadata=named(name), timeout=20)


async def _works(loader: LoaderUnderTest, name: str) -> bool:
    try:
        await _predict(loader, name)
    except grpc.aio.AioRpcError:
        return False
    return True


async def _refuses(loader: LoaderUnderTest) -> bool:
    try:
        await _predict(loader, "b")
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason == "SHUTTING_DOWN"
    return False


async def _is(loader: LoaderUnderTest, name: str, state: int) -> bool:
    return (await states(loader))[name] == state


async def _queued(loader: LoaderUnderTest, name: str, count: int) -> bool:
    return (await model(loader, name)).queued_calls == count
