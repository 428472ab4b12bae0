"""Regression tests for LocalAI's later defects, 1 to 12, each named after its number.

tests/unit/loader/test_localai_defects.py checks that none is missing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from corral.backend import backend_pb2, backend_pb2_grpc
from corral.loader.v1 import loader_pb2 as pb
from tests.tools.loader_calls import (
    FOREVER,
    MODEL,
    READY,
    UNLOADED,
    backends_running,
    begin,
    change,
    load,
    model,
    named,
    prompt,
    refused,
    states,
    unload,
)
from tests.tools.running import LoaderUnderTest, eventually

SOON = 10.0
"""Seconds within which an operation that nothing blocks ends, even on a busy machine."""


async def test_head_01_a_failure_does_not_keep_the_next_candidates_from_their_try(
    loader: LoaderUnderTest,
) -> None:
    loader.add_backend("a", load="refuse")
    loader.add_backend("b", start="exit:3")
    loader.add_backend("c")
    loader.add_model("m")
    await loader.start("--model-load-failure-cooldown", "60s")
    assert (await loader.control.LoadModel(load())).model.backend == "c"
    await loader.control.UnloadModel(unload())
    loader.behave("c", load="refuse")
    error = await refused(loader.control.LoadModel(load()))
    assert error.reason == "MODEL_LOAD_FAILED"
    assert all(f"[{name}]: " in error.message for name in "abc")
    error = await refused(loader.control.LoadModel(load()))
    assert error.reason == "LOAD_BACKOFF" and error.retry_after, "typed, and with a time to retry"


async def test_head_02_a_model_that_starts_is_not_evicted_for_its_own_calls(
    loader: LoaderUnderTest,
) -> None:
    loader.add_backend("fake", load_seconds=0.5)
    loader.add_model("m", "fake")
    await loader.start("--max-active-backends", "1")
    calls = [asyncio.ensure_future(_predict(loader, "m"))]
    while not loader.notes("fake"):
        calls.append(asyncio.ensure_future(_predict(loader, "m")))
        await asyncio.wait(calls, timeout=0.02)
    calls += [asyncio.ensure_future(_predict(loader, "m")) for _ in range(20)]
    await asyncio.gather(*calls)
    assert loader.notes("fake") == ["load m.bin"]
    assert not (await model(loader)).HasField("last_unload")


async def test_head_03_loads_in_progress_count_once(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", load_seconds=0.2)
    for name in "abcd":
        loader.add_model(name, "fake")
    await loader.start("--max-active-backends", "2")
    await asyncio.gather(*(loader.control.LoadModel(load(name)) for name in "ab"))
    for name in "ab":
        assert not (await model(loader, name)).HasField("last_unload"), "both had their places"
    # Two unloaded models race for places that are taken, and never exceed the limit together.
    loads = [asyncio.ensure_future(loader.control.LoadModel(load(name))) for name in "cd"]
    most = 0
    while not all(each.done() for each in loads):
        capacity = await loader.control.GetCapacity(pb.GetCapacityRequest())
        most = max(most, capacity.active_models, backends_running(loader))
    assert most == 2
    assert await states(loader) == {"a": UNLOADED, "b": UNLOADED, "c": READY, "d": READY}


async def test_head_04_an_exit_at_start_is_seen_at_once(running: LoaderUnderTest) -> None:
    running.behave("fake", start="exit:3")
    error = await asyncio.wait_for(refused(running.control.LoadModel(load())), SOON)
    assert error.reason == "BACKEND_START_FAILED"
    assert "exited with code 3" in error.message and "libfoo.so" in error.message


async def test_head_05_the_first_caller_may_leave(running: LoaderUnderTest) -> None:
    running.behave("fake", load_seconds=1)
    first = running.data.Predict(prompt("first"), metadata=MODEL)
    await eventually(lambda: running.notes("fake"), what="the load")
    others = [asyncio.ensure_future(_predict(running, "m")) for _ in range(5)]

    async def all_wait() -> bool:
        return (await model(running)).queued_calls == 6

    await eventually(all_wait, what="six calls that wait for the load")
    first.cancel()
    await asyncio.gather(*others)
    assert running.notes("fake") == ["load m.bin"]
    assert not (await model(running)).failures


async def test_head_06_those_who_waited_for_a_failed_load_do_not_try_one_by_one(
    running: LoaderUnderTest,
) -> None:
    running.behave("fake", load="refuse", load_seconds=0.3)
    began = time.monotonic()
    errors = await asyncio.gather(*(refused(_predict(running, "m")) for _ in range(50)))
    assert time.monotonic() - began < SOON
    assert running.notes("fake") == ["load m.bin"]
    reasons = Counter(error.reason for error in errors)
    assert reasons.keys() <= {"MODEL_LOAD_FAILED", "LOAD_BACKOFF"}, reasons
    assert reasons["MODEL_LOAD_FAILED"]


async def test_head_07_a_full_queue_stays_that_and_is_no_failure_of_the_load(
    loader: LoaderUnderTest,
) -> None:
    loader.add_backend("fake", load_seconds=1.5)
    loader.add_model("m", "fake")
    await loader.start("--queue-size", "1", "--max-concurrent-backend-requests", "3")
    first = asyncio.ensure_future(_predict(loader, "m"))
    await eventually(lambda: loader.notes("fake"), what="the load")
    for error in await asyncio.gather(*(refused(_predict(loader, "m")) for _ in range(3))):
        assert error.reason == "QUEUE_FULL" and error.retry_after
    await first
    found = await model(loader)
    assert found.state == READY and not found.failures


async def test_head_08_a_crash_is_seen_before_the_next_call(running: LoaderUnderTest) -> None:
    health = health_pb2_grpc.HealthStub(running.channel)
    pid = (await running.control.LoadModel(load())).model.instances[0].pid
    await running.data.Predict(prompt("x"), metadata=MODEL)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="models/m"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(SOON):
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        # No call is lost once the death is known.
        reply = await running.data.Predict(prompt("x"), metadata=MODEL)
    assert str(pid).encode() not in reply.message


class Unwell(backend_pb2_grpc.BackendServicer):
    async def Health(self, request: Any, context: Any) -> backend_pb2.Reply:
        return backend_pb2.Reply(message=b"not today")


async def test_head_09_a_process_that_fails_health_is_not_taken_for_healthy(
    loader: LoaderUnderTest,
) -> None:
    server = grpc.aio.server()
    backend_pb2_grpc.add_BackendServicer_to_server(Unwell(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loader.add_model("m", "unwell", grpc={"attempts": 1, "attempts_sleep_time": 1})
    await loader.start("--external-backend", f"unwell=127.0.0.1:{port}")
    error = await refused(loader.control.LoadModel(load()))
    assert error.reason == "BACKEND_NOT_READY" and "Health" in error.message
    await server.stop(0)


async def test_head_09_a_process_that_hangs_can_be_unloaded(loader: LoaderUnderTest) -> None:
    await begin(loader, "m")
    await loader.start("--free-timeout", "200ms", "--terminate-timeout", "200ms")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    os.kill(pid, signal.SIGSTOP)
    await asyncio.wait_for(loader.control.UnloadModel(unload()), SOON)
    assert backends_running(loader) == 0
    await loader.data.Predict(prompt("x"), metadata=MODEL, timeout=SOON)


async def test_head_10_what_failed_crashed_or_was_stopped_leaves_no_ghost(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "crashed", "stopped", "new")
    loader.add_backend("refuses", load="refuse")
    loader.add_model("failed", "refuses")
    await loader.start("--max-active-backends", "3")
    await refused(loader.control.LoadModel(load("failed")))
    await refused(loader.data.Predict(prompt("crash"), metadata=named("crashed")))
    await loader.control.LoadModel(load("stopped"))
    await loader.control.UnloadModel(unload("stopped"))

    async def nobody() -> bool:
        capacity = await loader.control.GetCapacity(pb.GetCapacityRequest())
        return bool(capacity.active_models == 0)

    await eventually(nobody, what="an empty loader")
    await change(loader, max_active_backends=1, watchdog_idle=True)
    plan = await loader.control.PlanEviction(pb.PlanEvictionRequest(name="new"))
    assert plan.fits and not plan.evictions
    await loader.control.LoadModel(load("new"))
    for name in ("failed", "crashed"):
        assert (await model(loader, name)).last_unload.cause != pb.Unload.CAUSE_EVICTED


async def test_head_10_the_idle_time_of_a_dead_process_is_not_its_successors(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "m")
    await loader.start("--watchdog-interval", "20ms", "--watchdog-idle-timeout", "1s")
    await loader.control.LoadModel(load())
    old = (await model(loader)).instances[0]
    await change(loader, watchdog_idle=True)
    os.kill(old.pid, signal.SIGKILL)

    async def successor() -> pb.Instance | None:
        found = (await loader.control.LoadModel(load())).model.instances
        return found[0] if found and found[0].uid != old.uid else None

    new: pb.Instance = await eventually(successor, what="the next process")

    async def unloaded() -> bool:
        return (await states(loader))["m"] == UNLOADED

    await eventually(unloaded, what="the unload of the idle model")
    unloading = (await model(loader)).last_unload
    assert unloading.cause == pb.Unload.CAUSE_IDLE
    lived = unloading.time.ToMicroseconds() - new.ready_time.ToMicroseconds()
    assert lived >= 1_000_000


async def test_head_11_the_busy_watchdog_leaves_loads_alone(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", load_seconds=1)
    loader.add_model("m", "fake")
    await loader.start(
        "--enable-watchdog-busy",
        "--watchdog-busy-timeout", "200ms",
        "--watchdog-interval", "20ms",
    )  # fmt: skip
    await loader.data.Predict(prompt("x"), metadata=MODEL, timeout=SOON)
    assert loader.notes("fake") == ["load m.bin"]
    assert not (await model(loader)).HasField("last_unload")


async def test_head_11_a_model_that_was_too_busy_to_go_is_still_watched(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "m")
    await loader.start(
        "--drain-timeout", "100ms",
        "--enable-watchdog-idle",
        "--watchdog-idle-timeout", "300ms",
        "--watchdog-interval", "20ms",
    )  # fmt: skip
    stream = loader.data.PredictStream(FOREVER, metadata=MODEL)
    await stream.read()
    assert (await refused(loader.control.UnloadModel(unload()))).reason == "MODEL_BUSY"
    capacity = await loader.control.GetCapacity(pb.GetCapacityRequest())
    assert capacity.active_models == 1
    stream.cancel()

    async def unloaded() -> bool:
        return (await states(loader))["m"] == UNLOADED

    await eventually(unloaded, what="the unload of the idle model")


async def test_head_12_watchdogs_change_under_running_calls(loader: LoaderUnderTest) -> None:
    """Running calls continue, and calls and models from before the change are watched too."""
    await begin(loader, "alive", "stuck", "idle")
    await loader.start("--max-active-backends", "3")
    await loader.control.LoadModel(load("idle"))
    stream = loader.data.PredictStream(FOREVER, metadata=named("alive"))
    await stream.read()
    stuck = asyncio.ensure_future(refused(_predict(loader, "stuck", "wait")))
    async with asyncio.timeout(SOON):
        for number in range(20):
            await change(loader, watchdog_busy=number % 2 == 0, watchdog_interval=_ms(20 + number))
        # Longer than a busy machine delays a healthy backend.
        times = {"watchdog_busy_timeout": Duration(seconds=2), "watchdog_idle_timeout": _ms(500)}
        await change(loader, watchdog_busy=True, watchdog_idle=True, **times)
        while not stuck.done() or (await states(loader))["idle"] != UNLOADED:
            assert await stream.read()
    assert "no progress" in stuck.result().message
    assert (await states(loader))["alive"] == READY
    stream.cancel()


def _ms(milliseconds: int) -> Duration:
    return Duration(nanos=milliseconds * 1_000_000)


async def _predict(loader: LoaderUnderTest, name: str, text: str = "x") -> Any:
    return await loader.data.Predict(prompt(text), metadata=named(name), timeout=SOON)
