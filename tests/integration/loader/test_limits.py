"""Limits on models, with real processes: evictions, waits, refusals, and their messages."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2 as pb
from tests.tools.loader_calls import (
    FOREVER,
    READY,
    UNLOADED,
    WAITING,
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


async def test_the_least_recently_used_makes_way(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b", "c")
    await loader.start("--max-active-backends", "2")
    for name in ("a", "b", "a"):
        await loader.data.Predict(prompt("x"), metadata=named(name))
    plan = await loader.control.PlanEviction(pb.PlanEvictionRequest(name="c"))
    await loader.data.Predict(prompt("x"), metadata=named("c"))
    assert await states(loader) == {"a": READY, "b": UNLOADED, "c": READY}
    gone = (await model(loader, "b")).last_unload
    assert gone.cause == pb.Unload.CAUSE_EVICTED and gone.for_model == "models/c"
    assert "'c'" in gone.message and "idle" in gone.message
    assert plan.fits and [each.model for each in plan.evictions] == ["models/b"]


async def test_who_is_in_use_stays_and_who_waits_is_told_why(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b")
    await loader.start("--max-active-backends", "1", "--lru-eviction-max-retries", "1000")
    stream = loader.data.PredictStream(FOREVER, metadata=named("a"))
    await stream.read()
    waiting = asyncio.ensure_future(loader.control.LoadModel(load("b")))

    async def waits() -> bool:
        return bool((await model(loader, "b")).state == WAITING)

    await eventually(waits, what="b waiting for room")
    assert "in use" in (await model(loader, "b")).state_message
    plan = await loader.control.PlanEviction(pb.PlanEvictionRequest(name="b"))
    assert not plan.fits and plan.blockers[0].model == "models/a" and plan.blockers[0].temporary
    capacity = await loader.control.GetCapacity(pb.GetCapacityRequest())
    assert (capacity.active_models, capacity.max_active_models, capacity.calls) == (1, 1, 1)
    assert [each.model for each in capacity.waiting] == ["models/b"]
    assert capacity.devices[0].name == "ram"
    assert capacity.devices[0].total_bytes > capacity.devices[0].available_bytes > 0
    stream.cancel()
    await asyncio.wait_for(waiting, 10)
    assert await states(loader) == {"a": UNLOADED, "b": READY}


async def test_no_room_in_time_is_refused_with_a_time_to_retry(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b")
    await loader.start(
        "--max-active-backends", "1",
        "--lru-eviction-max-retries", "2",
        "--lru-eviction-retry-interval", "100ms",
    )  # fmt: skip
    stream = loader.data.PredictStream(FOREVER, metadata=named("a"))
    await stream.read()
    error = await refused(loader.control.LoadModel(load("b"), timeout=10))
    assert error.reason == "NO_ROOM" and error.retry_after and "a (it is in use)" in error.message
    assert await stream.read()  # no call was disturbed
    stream.cancel()


async def test_force_eviction_cuts_the_calls(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b")
    await loader.start("--max-active-backends", "1", "--force-eviction-when-busy")
    stream = loader.data.PredictStream(FOREVER, metadata=named("a"))
    await stream.read()
    await loader.control.LoadModel(load("b"))

    async def to_the_end() -> None:
        while await stream.read() is not grpc.aio.EOF:
            pass

    error = await refused(to_the_end())
    assert error.reason == "MODEL_UNLOADED" and "force_eviction_when_busy" in error.message
    assert (await model(loader, "a")).last_unload.forced


async def test_whoever_has_waited_too_long_gets_its_turn(loader: LoaderUnderTest) -> None:
    """Calls for a never leave a gap; b is loaded all the same, and no call is lost."""
    await begin(loader, "a", "b")
    await loader.start("--max-active-backends", "1", "--starvation-bound", "300ms")
    done = asyncio.Event()
    answered = 0

    async def keep_calling() -> None:
        nonlocal answered
        while not done.is_set():
            await loader.data.Predict(prompt("x"), metadata=named("a"), timeout=30)
            answered += 1

    await loader.control.LoadModel(load("a"))
    callers = [asyncio.ensure_future(keep_calling()) for _ in range(4)]
    await asyncio.wait_for(loader.data.Predict(prompt("x"), metadata=named("b")), 15)
    done.set()
    await asyncio.wait_for(asyncio.gather(*callers), 15)
    assert answered


async def test_concurrency_groups(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b", concurrency_groups=["heavy"])
    loader.add_model("light", "fake")
    await loader.start()
    for name in ("light", "a", "b"):
        await loader.control.LoadModel(load(name))
    assert await states(loader) == {"a": UNLOADED, "b": READY, "light": READY}
    assert list((await model(loader, "a")).concurrency_groups) == ["heavy"]


async def test_pins_hold_and_are_kept(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b")
    await loader.start("--single-active-backend")
    await loader.control.LoadModel(load("a"))
    pinned = await loader.control.PinModel(pb.PinModelRequest(name="a", pinned=True))
    assert pinned.model.pinned
    error = await refused(loader.control.LoadModel(load("b")))
    assert error.reason == "NO_ROOM" and "a (it is pinned)" in error.message
    assert error.retry_after is None
    await loader.service.stop()
    await loader.channel.close()
    await loader.start("--single-active-backend")
    assert (await model(loader, "a")).pinned
    await loader.control.PinModel(pb.PinModelRequest(name="a", pinned=False))
    await loader.control.LoadModel(load("a"))
    await loader.control.LoadModel(load("b"))
    assert await states(loader) == {"a": UNLOADED, "b": READY}


async def test_a_pinned_model_that_crashed_comes_back_by_itself(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", pinned=True)
    await loader.start()
    await refused(loader.data.Predict(prompt("crash"), metadata=named("a")))

    async def back() -> bool:
        return (await states(loader))["a"] == READY

    await eventually(back, what="the pinned model's return")


async def test_a_pinned_model_that_crashed_can_be_unloaded(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", pinned=True)
    await loader.start()
    await refused(loader.data.Predict(prompt("crash"), metadata=named("a")))
    await loader.control.LoadModel(load("a"))
    await loader.control.UnloadModel(pb.UnloadModelRequest(name="a"))
    await stays(loader, "a", UNLOADED)


async def test_a_pinned_model_without_room_is_tried_again_now_and_then(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "a", pinned=True, memory="100MiB")
    await loader.start("--model-load-failure-cooldown", "300ms")
    await loader.control.LoadModel(load("a"))
    await change(loader, ram_budget="50MiB")
    await refused(loader.data.Predict(prompt("crash"), metadata=named("a")))
    changes = loader.control.WatchModels(pb.WatchModelsRequest(), timeout=1.5)
    news = []
    with pytest.raises(grpc.aio.AioRpcError):
        async for each in changes:
            news.append(each)  # noqa: PERF401 - it ends with an error
    assert 2 < len(news) < 12
    await change(loader, ram_budget="")

    async def back() -> bool:
        return (await states(loader))["a"] == READY

    await eventually(back, what="the pinned model's return")


async def test_what_changes_while_it_waits_is_asked_for_anew(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b", concurrency_groups=["g"])
    await loader.start()
    stream = loader.data.PredictStream(FOREVER, metadata=named("a"))
    await stream.read()
    waiting = asyncio.ensure_future(loader.data.Predict(prompt("x"), metadata=named("b")))

    async def waits() -> bool:
        return bool((await model(loader, "b")).state == WAITING)

    await eventually(waits, what="b waiting for room")
    loader.add_model("b", "fake")
    await asyncio.wait_for(waiting, 8)
    assert (await states(loader)) == {"a": READY, "b": READY}
    stream.cancel()


async def stays(loader: LoaderUnderTest, name: str, state: int) -> None:
    """Watch the model for a moment in which it must not change."""
    changes = loader.control.WatchModels(pb.WatchModelsRequest(), timeout=1.0)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for news in changes:
            if news.model.name == f"models/{name}":
                assert news.model.state == state
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_pins_unloads_and_probes_by_an_alias_mean_its_model(loader: LoaderUnderTest) -> None:
    await begin(loader, "a")
    (loader.models / "also-a.yaml").write_text("name: also-a\nalias: a\n")
    await loader.start()
    pinned = await loader.control.PinModel(pb.PinModelRequest(name="also-a", pinned=True))
    assert pinned.model.name == "models/a" and pinned.model.pinned
    await loader.control.LoadModel(load("also-a"))
    logs = loader.control.StreamLogs(pb.StreamLogsRequest(name="also-a", follow=True))
    await asyncio.wait_for(logs.read(), 5)
    await loader.data.Health(backend_pb2.HealthMessage(), metadata=named("also-a"))
    await loader.control.UnloadModel(pb.UnloadModelRequest(name="also-a"))
    assert (await states(loader))["a"] == UNLOADED
    logs.cancel()


async def test_limits_change_live_and_are_kept(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b", "c")
    await loader.start("--parallel-loads", "3")
    for name in "abc":
        await loader.control.LoadModel(load(name))
    answer = await change(loader, max_active_backends=1)
    assert answer.settings.max_active_backends == 1
    assert answer.sources["max_active_backends"] == "runtime"
    assert answer.sources["parallel_loads"] == "start"
    assert answer.sources["queue_size"] == "default"

    async def only_one() -> bool:
        return list((await states(loader)).values()).count(UNLOADED) == 2

    await eventually(only_one, what="eviction of what is too much")
    assert (await model(loader, "a")).last_unload.cause == pb.Unload.CAUSE_LIMITS
    error = await refused(change(loader, memory_reclaimer_threshold=7.0, watchdog_idle=True))
    assert error.reason == "INVALID_REQUEST" and "memory_reclaimer_threshold" in error.message
    now = await loader.control.GetSettings(pb.GetSettingsRequest())
    assert not now.settings.watchdog_idle, "all or nothing"
    assert "update_mask" in (await refused(change(loader))).message
    await loader.service.stop()
    await loader.channel.close()
    await loader.start("--parallel-loads", "3")
    now = await loader.control.GetSettings(pb.GetSettingsRequest())
    assert now.settings.max_active_backends == 1
    await loader.service.stop()
    await loader.channel.close()
    await loader.start("--max-active-backends", "5")
    now = await loader.control.GetSettings(pb.GetSettingsRequest())
    assert now.settings.max_active_backends == 5, "a flag wins over what was kept"


async def test_what_cannot_fit_is_refused_before_it_is_loaded(loader: LoaderUnderTest) -> None:
    await begin(loader, "large")
    with (loader.models / "large.bin").open("wb") as file:
        file.truncate(8 * 1024**4)  # uses no disk
    await loader.start()
    error = await refused(loader.control.LoadModel(load("large")))
    assert error.reason == "NO_ROOM" and "ram" in error.message and "fit_check" in error.message
    assert loader.notes("fake") == [], "it was not even started"
    plan = await loader.control.PlanEviction(pb.PlanEvictionRequest(name="large"))
    assert not plan.fits and plan.memory[0].bytes >= 8 * 1024**4
    await change(loader, fit_check=False)
    await loader.control.LoadModel(load("large"))


async def test_a_budget_makes_others_go(loader: LoaderUnderTest) -> None:
    await begin(loader, "a", "b")
    for name in "ab":
        with (loader.models / f"{name}.bin").open("wb") as file:
            file.truncate(600 * 1024**2)
    await loader.start("--ram-budget", "1GiB")
    await loader.control.LoadModel(load("a"))
    plan = await loader.control.PlanEviction(pb.PlanEvictionRequest(name="b"))
    await loader.control.LoadModel(load("b"))
    # a uses much less memory than its file's size: once it is measured, both fit.
    assert plan.fits
    assert (await states(loader))["b"] == READY
