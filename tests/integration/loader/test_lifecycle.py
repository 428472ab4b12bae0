"""Starting, stopping, crashing and dying, with real processes of a foreign backend."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from corral.loader.v1 import loader_pb2 as pb
from services.common.rpc.status import from_rpc_error
from tests.tools.loader_calls import FOREVER, MODEL, backends_running, load, prompt
from tests.tools.processes import descendants
from tests.tools.running import LoaderUnderTest, alive, eventually, processes_in


async def test_load_get_unload(running: LoaderUnderTest) -> None:
    loaded = (await running.control.LoadModel(load())).model
    assert loaded.state == pb.Model.STATE_READY
    assert alive(loaded.instances[0].pid)
    assert loaded.instances[0].load_message == "Loading succeeded"
    assert loaded.instances[0].total_calls == 0 and loaded.instances[0].active_calls == 0
    again = (await running.control.LoadModel(load())).model
    assert again.instances[0].uid == loaded.instances[0].uid

    unloaded = await running.control.UnloadModel(pb.UnloadModelRequest(name="m"))
    assert unloaded.model.state == pb.Model.STATE_UNLOADED
    assert not unloaded.model.instances
    assert not alive(loaded.instances[0].pid)
    assert running.notes("fake")[-1] == "free"
    await running.control.UnloadModel(pb.UnloadModelRequest(name="m"))


async def test_many_first_calls_start_one_process(running: LoaderUnderTest) -> None:
    running.behave("fake", load_seconds=0.3)
    calls = [running.data.Predict(prompt(str(i)), metadata=MODEL) for i in range(200)]
    replies = await asyncio.gather(*calls)
    assert len(replies) == 200
    assert running.notes("fake") == ["load m.bin"]


async def test_a_caller_that_leaves_does_not_end_the_load(running: LoaderUnderTest) -> None:
    running.behave("fake", load_seconds=0.5)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.data.Predict(prompt("x"), metadata=MODEL, timeout=0.2)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await running.control.LoadModel(load(), timeout=5)
    assert running.notes("fake") == ["load m.bin"]


async def test_models_load_side_by_side(loader: LoaderUnderTest) -> None:
    loader.add_backend("slow", load="hang")
    loader.add_backend("quick")
    loader.add_model("stuck", "slow")
    loader.add_model("m", "quick")
    await loader.start()
    stuck = asyncio.ensure_future(loader.control.LoadModel(load("stuck")))

    async def hangs() -> bool:
        found = (await loader.control.GetModel(pb.GetModelRequest(name="stuck"))).model
        return bool(found.state == pb.Model.STATE_LOADING)

    await eventually(hangs, what="a load that hangs")
    await loader.data.Predict(prompt("x"), metadata=MODEL, timeout=5)
    assert not stuck.done()
    stuck.cancel()


async def test_return_immediately_and_watch(running: LoaderUnderTest) -> None:
    running.behave("fake", load_seconds=0.2)
    watch = running.control.WatchModels(pb.WatchModelsRequest())
    first = await watch.read()
    assert first.change_type == pb.WatchModelsResponse.CHANGE_TYPE_SNAPSHOT
    assert (await watch.read()).change_type == pb.WatchModelsResponse.CHANGE_TYPE_SNAPSHOT_END
    begun = await running.control.LoadModel(load(return_immediately=True))
    assert begun.model.state == pb.Model.STATE_STARTING
    states: list[str] = []
    token = ""
    while not states or states[-1] != "STATE_READY":
        news = await asyncio.wait_for(watch.read(), 5)
        states.append(pb.Model.State.Name(news.model.state))
        if states[-1] == "STATE_LOADING":
            token = news.resume_token
    assert states == ["STATE_STARTING", "STATE_LOADING", "STATE_READY"]
    resumed = running.control.WatchModels(pb.WatchModelsRequest(resume_token=token))
    assert (await resumed.read()).model.state == pb.Model.STATE_READY


async def test_models_that_come_change_and_go(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    await loader.start("--models-interval", "50ms")
    health = health_pb2_grpc.HealthStub(loader.channel)
    watch = loader.control.WatchModels(pb.WatchModelsRequest())
    for _ in range(2):
        await watch.read()
    first = (await loader.control.LoadModel(load())).model.instances[0]
    loader.add_model("new", "fake")

    async def until(name: str, kind: int, state: int) -> None:
        while True:
            news = await asyncio.wait_for(watch.read(), 5)
            found = (news.model.name, news.change_type, news.model.state)
            if found == (f"models/{name}", kind, state):
                return

    changed = pb.WatchModelsResponse.CHANGE_TYPE_CHANGED
    await until("new", changed, pb.Model.STATE_UNLOADED)
    await health.Check(health_pb2.HealthCheckRequest(service="models/new"))
    (loader.models / "new.yaml").unlink()
    gone = pb.WatchModelsResponse.CHANGE_TYPE_REMOVED
    await until("new", gone, pb.Model.STATE_UNSPECIFIED)
    with pytest.raises(grpc.aio.AioRpcError):
        await health.Check(health_pb2.HealthCheckRequest(service="models/new"))
    # A changed model is unloaded once idle, and the next call gets the new configuration.
    loader.add_model("m", "fake", context_size=99)
    await until("m", changed, pb.Model.STATE_UNLOADED)
    assert not alive(first.pid)
    await loader.data.Predict(prompt("x"), metadata=MODEL)


async def test_health_follows_the_model(running: LoaderUnderTest) -> None:
    health = health_pb2_grpc.HealthStub(running.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="models/m"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    model = (await running.control.LoadModel(load())).model
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    os.kill(model.instances[0].pid, signal.SIGKILL)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_unload_waits_for_calls_and_refuses_when_they_stay(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    await loader.start("--drain-timeout", "500ms")
    stream = loader.data.PredictStream(FOREVER, metadata=MODEL)
    await stream.read()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"))
    assert from_rpc_error(failed.value).reason == "MODEL_BUSY"
    await stream.read()
    await loader.control.UnloadModel(pb.UnloadModelRequest(name="m", force=True))
    with pytest.raises(grpc.aio.AioRpcError) as cut:
        while True:
            await stream.read()
    assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
    assert from_rpc_error(cut.value).reason == "MODEL_UNLOADED"


async def test_unload_during_a_load(running: LoaderUnderTest) -> None:
    running.behave("fake", load="hang")
    loading = asyncio.ensure_future(running.control.LoadModel(load()))
    await eventually(lambda: running.notes("fake"), what="LoadModel at the backend")
    await running.control.UnloadModel(pb.UnloadModelRequest(name="m"))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await loading
    assert from_rpc_error(failed.value).reason == "MODEL_UNLOADED"
    assert backends_running(running) == 0


@pytest.mark.parametrize("exec_", [True, False])
async def test_unload_ends_helpers_and_those_that_escaped(
    loader: LoaderUnderTest, exec_: bool
) -> None:
    loader.add_backend("fake", exec_=exec_, children=2, escapee=True)
    loader.add_model("m", "fake")
    await loader.start()
    await loader.control.LoadModel(load())
    assert len(processes_in(loader.backends)) >= 4
    await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"))
    assert processes_in(loader.backends) == []


async def test_a_backend_that_ignores_sigterm_is_killed(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", ignore_sigterm=True)
    loader.add_model("m", "fake")
    await loader.start("--terminate-timeout", "300ms")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"))
    assert not alive(pid)


@pytest.mark.parametrize("exec_", [True, False])
async def test_sigkill_of_the_loader_leaves_no_backend(
    loader: LoaderUnderTest, exec_: bool
) -> None:
    loader.add_backend("fake", exec_=exec_, children=1, escapee=True, ignore_sigterm=True)
    loader.add_model("m", "fake")
    await loader.start()
    await loader.control.LoadModel(load())
    assert processes_in(loader.backends)
    loader.service.kill()
    await loader.service.process.wait()
    await eventually(
        lambda: not processes_in(loader.backends), timeout=2, what="the end of all backends"
    )


async def test_sigkill_of_the_loader_while_backends_start(loader: LoaderUnderTest) -> None:
    for number in range(5):
        loader.add_backend(f"fake{number}", exec_=False)
        loader.add_model(f"m{number}", f"fake{number}")
    await loader.start()
    loads = [asyncio.ensure_future(loader.control.LoadModel(load(f"m{n}"))) for n in range(5)]
    await eventually(lambda: processes_in(loader.backends), what="a first process")
    loader.service.kill()
    await asyncio.gather(*loads, return_exceptions=True)
    await eventually(
        lambda: not processes_in(loader.backends), timeout=2, what="the end of all backends"
    )


async def test_a_new_guard_replaces_a_dead_one(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    await loader.start()
    (guard,) = await eventually(lambda: guards(loader), what="the guard")
    guard.kill()
    await eventually(lambda: not alive(guard.pid), what="the guard's end")
    await loader.control.LoadModel(load())
    assert [p.pid for p in guards(loader)] != [guard.pid]
    loader.service.kill()
    await eventually(
        lambda: not processes_in(loader.backends), timeout=2, what="the end of all backends"
    )


def guards(loader: LoaderUnderTest) -> list[Any]:
    return descendants(loader.service.pid, "guard.py")


async def test_sigterm_ends_everything(running: LoaderUnderTest) -> None:
    await running.control.LoadModel(load())
    assert await running.service.stop() == 0
    assert processes_in(running.backends) == []


async def test_endless_streams_do_not_hold_up_the_stop(running: LoaderUnderTest) -> None:
    await running.control.LoadModel(load())
    watch = running.control.WatchModels(pb.WatchModelsRequest())
    logs = running.control.StreamLogs(pb.StreamLogsRequest(name="m", follow=True))
    await watch.read()
    await logs.read()
    assert await running.service.stop(timeout=5) == 0


async def test_the_loader_stops_when_its_starter_is_gone(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    reading, writing = os.pipe()
    try:
        await loader.start(env={"CORRAL_WATCH_FD": str(reading)}, pass_fds=(reading,))
        await loader.control.LoadModel(load())
    finally:
        os.close(writing)
        os.close(reading)
    assert await asyncio.wait_for(loader.service.process.wait(), 10) == 0
    assert processes_in(loader.backends) == []


async def test_logs_of_a_flood(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", stderr_lines=5000)
    loader.add_model("m", "fake")
    await loader.start("--log-lines", "100")
    await loader.control.LoadModel(load())
    lines = [r.line async for r in loader.control.StreamLogs(pb.StreamLogsRequest(name="m"))]
    assert len(lines) == 100
    numbers = [line.sequence for line in lines]
    assert numbers == list(range(numbers[0], numbers[0] + 100))
    tail = loader.control.StreamLogs(pb.StreamLogsRequest(name="m", tail_lines=1, follow=True))
    assert (await tail.read()).line.sequence == numbers[-1]
    await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"))
    assert (await tail.read()).line.sequence == numbers[-1] + 1
