"""Invariants of docs/architecture.md that need a process and that no other test covers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2 as pb
from tests.tools.loader_calls import (
    FOREVER,
    MODEL,
    READY,
    UNLOADED,
    begin,
    load,
    model,
    named,
    prompt,
    refused,
    states,
    unload,
)
from tests.tools.running import LoaderUnderTest, eventually, processes_in

CHANGED = pb.WatchModelsResponse.CHANGE_TYPE_CHANGED
AT_ONCE = 1.0
"""Seconds within which an event is seen even on a busy machine, but a 2-second poll is not."""


async def test_3_a_load_that_nobody_waits_for_is_not_evicted(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", load_seconds=0.3)
    for name in "ab":
        loader.add_model(name, "fake")
    await loader.start("--max-active-backends", "1")
    watch = loader.control.WatchModels(pb.WatchModelsRequest())
    await loader.control.LoadModel(load("a", return_immediately=True))
    await loader.control.LoadModel(load("b"))
    seen = []
    while UNLOADED not in seen:
        news = await watch.read()
        if news.model.name == "models/a" and news.change_type == CHANGED:
            seen.append(news.model.state)
    assert READY in seen, "it came to be before it made way"


async def test_3_a_model_is_used_before_it_makes_way_for_the_next(loader: LoaderUnderTest) -> None:
    names = ("a", "b", "c")
    for name in names:
        loader.add_backend(name)
        loader.add_model(name, name)
    await loader.start("--max-active-backends", "1")
    calls = (
        loader.data.Predict(prompt("x"), metadata=named(name), timeout=20)
        for name in names
        for _ in range(3)
    )
    assert len(await asyncio.gather(*calls)) == 9
    for name in names:
        assert loader.notes(name).count(f"load {name}.bin") == 1, name


async def test_5_no_probe_counts_or_keeps_a_model(loader: LoaderUnderTest) -> None:
    await begin(loader, "m")
    await loader.start("--watchdog-interval", "20ms", "--watchdog-idle-timeout", "600ms")

    async def look() -> None:
        for probe in (loader.data.Health, loader.data.Status):
            with suppress(grpc.aio.AioRpcError):  # the model is not loaded, or no longer loaded
                await probe(backend_pb2.HealthMessage(), metadata=MODEL)
        with suppress(grpc.aio.AioRpcError):
            await loader.data.GetMetrics(backend_pb2.MetricsRequest(), metadata=MODEL)
        await states(loader)
        await loader.control.PlanEviction(pb.PlanEvictionRequest(name="m"))
        await loader.control.GetCapacity(pb.GetCapacityRequest())
        async for _ in loader.control.StreamLogs(pb.StreamLogsRequest(name="m")):
            pass

    await look()
    assert (await states(loader))["m"] == UNLOADED and not loader.notes("fake")
    await loader.control.LoadModel(load())
    await look()
    instance = (await model(loader)).instances[0]
    assert instance.total_calls == 0 and not instance.HasField("last_used_time")
    await loader.control.UpdateSettings(_idle_watchdog())

    async def gone() -> bool:
        await look()
        return (await states(loader))["m"] == UNLOADED

    await eventually(gone, timeout=5, what="the unload of a model that is only looked at")


def _idle_watchdog() -> pb.UpdateSettingsRequest:
    request = pb.UpdateSettingsRequest(settings=pb.Settings(watchdog_idle=True))
    request.update_mask.paths.append("watchdog_idle")
    return request


async def test_6_a_death_is_seen_at_once(running: LoaderUnderTest) -> None:
    """By watchers of the model's health and of the model; benchmarks/death.py measures it."""
    health = health_pb2_grpc.HealthStub(running.channel)
    pid = (await running.control.LoadModel(load())).model.instances[0].pid
    watch = health.Watch(health_pb2.HealthCheckRequest(service="models/m"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    models = running.control.WatchModels(pb.WatchModelsRequest())
    while (await models.read()).change_type != pb.WatchModelsResponse.CHANGE_TYPE_SNAPSHOT_END:
        pass
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await models.read()).model.state != READY
    assert time.monotonic() - killed < AT_ONCE


@pytest.mark.parametrize("what", ["configuration", "file"])
async def test_7_what_changed_is_tried_again_at_once(loader: LoaderUnderTest, what: str) -> None:
    await begin(loader, "m")
    loader.behave("fake", load="refuse")
    (loader.models / "m.bin").write_bytes(b"broken")
    await loader.start("--load-backoff", "60s", "--models-interval", "60s")
    await refused(loader.control.LoadModel(load()))
    assert (await refused(loader.control.LoadModel(load()))).reason == "LOAD_BACKOFF"
    loader.behave("fake")
    if what == "file":
        (loader.models / "m.bin").write_bytes(b"whole now")
    else:
        loader.add_model("m", "fake", context_size=99)
    await loader.control.LoadModel(load())


async def test_9_a_backend_that_drops_its_environment_ends_with_the_loader(
    loader: LoaderUnderTest,
) -> None:
    """The guard finds it by its group, and those that left the group by their environment."""
    folder = loader.add_backend("fake", ignore_sigterm=True)
    run = (folder / "run.sh").read_text()
    clean = 'exec env -i PYTHONPATH="$PYTHONPATH" '
    (folder / "run.sh").write_text(run.replace("exec ", clean))
    loader.add_model("m", "fake")
    await loader.start()
    await loader.control.LoadModel(load())
    loader.service.kill()
    await loader.service.process.wait()
    await eventually(lambda: not processes_in(loader.backends), timeout=2, what="its end")


async def test_10_a_changed_configuration_disturbs_nobody_else(loader: LoaderUnderTest) -> None:
    await begin(loader, "changed", "busy", "idle")
    await loader.start("--models-interval", "50ms")
    for name in ("changed", "busy", "idle"):
        await loader.control.LoadModel(load(name))

    async def others() -> list[str]:
        return [(await model(loader, name)).instances[0].uid for name in ("busy", "idle")]

    before = await others()
    stream = loader.data.PredictStream(FOREVER, metadata=named("busy"))
    await stream.read()
    loader.add_model("changed", "fake", context_size=99)

    async def unloaded() -> bool:
        return (await states(loader))["changed"] == UNLOADED

    await eventually(unloaded, what="the unload of what changed")
    assert (await model(loader, "changed")).last_unload.cause == pb.Unload.CAUSE_CHANGED
    assert await stream.read()
    stream.cancel()
    await loader.control.LoadModel(load("changed"))
    assert await others() == before


async def test_11_nothing_that_happens_to_one_model_delays_anothers_calls(
    loader: LoaderUnderTest,
) -> None:
    """Loads, hangs, refusals, crashes and slow stops; the benchmarks have the figures."""
    loader.add_backend("quick")
    loader.add_backend("slow", load_seconds=0.5, sigterm_seconds=1.5)
    loader.add_backend("hangs", load="hang")
    loader.add_backend("mute", start="hang")
    loader.add_backend("refuses", load="refuse")
    for name in ("quick", "slow", "hangs", "mute", "refuses"):
        loader.add_model(name, name)
    await loader.start()
    await loader.data.Predict(prompt("x"), metadata=named("quick"))
    stuck = [asyncio.ensure_future(loader.control.LoadModel(load(n))) for n in ("hangs", "mute")]

    async def trouble() -> None:
        await refused(loader.control.LoadModel(load("refuses")))
        await loader.control.LoadModel(load("slow"))
        await refused(loader.data.Predict(prompt("crash"), metadata=named("slow")))
        await loader.control.LoadModel(load("slow"))
        await loader.control.UnloadModel(unload("slow"))

    work: asyncio.Task[Any] = asyncio.create_task(trouble())
    longest = 0.0
    while not work.done():
        began = time.monotonic()
        await loader.data.Predict(prompt("x"), metadata=named("quick"))
        longest = max(longest, time.monotonic() - began)
    await work
    assert longest < AT_ONCE
    assert not any(each.done() for each in stuck)
    for each in stuck:
        each.cancel()
