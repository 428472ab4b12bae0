"""Regression tests for LocalAI's later defects, 13 to 24, each named after its number.

tests/unit/loader/test_localai_defects.py checks that none is missing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from corral.backend import backend_pb2_grpc
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
from tests.tools.running import LoaderUnderTest, eventually, processes_in

SOON = 10.0
"""Seconds within which an operation that nothing blocks ends, even on a busy machine."""


async def test_head_13_no_retries_do_not_turn_limits_off_and_nor_do_pins(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "a", "b", "c", concurrency_groups=["g"])
    await loader.start("--max-active-backends", "1", "--lru-eviction-max-retries", "0")
    await loader.control.LoadModel(load("a"))
    await loader.control.LoadModel(load("b"))
    assert await states(loader) == {"a": UNLOADED, "b": READY, "c": UNLOADED}
    stream = loader.data.PredictStream(FOREVER, metadata=named("b"))
    await stream.read()
    error = await asyncio.wait_for(refused(loader.control.LoadModel(load("c"))), SOON)
    assert error.reason == "NO_ROOM" and "in use" in error.message
    stream.cancel()
    await loader.control.PinModel(pb.PinModelRequest(name="b", pinned=True))
    error = await asyncio.wait_for(refused(loader.control.LoadModel(load("c"))), SOON)
    assert error.reason == "NO_ROOM" and "pinned" in error.message
    assert backends_running(loader) == 1


async def test_head_14_the_reclaimer_waits_for_the_memory_of_the_last_one(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "a", "b")
    await loader.start("--watchdog-interval", "20ms", "--measure-interval", "50ms")
    for name in "ab":
        await loader.control.LoadModel(load(name))

    async def measured() -> bool:
        found = [(await model(loader, name)).memory for name in "ab"]
        return all(m and m[0].basis == pb.MemoryReservation.BASIS_MEASURED for m in found)

    await eventually(measured, what="measures of both")
    await change(loader, memory_reclaimer=True, memory_reclaimer_threshold=1e-6)

    async def both_gone() -> bool:
        return set((await states(loader)).values()) == {UNLOADED}

    await eventually(both_gone, what="reclaiming")
    gone = [(await model(loader, name)).last_unload for name in "ab"]
    assert {each.cause for each in gone} == {pb.Unload.CAUSE_MEMORY}
    first, second = sorted(each.time.ToMicroseconds() for each in gone)
    assert second - first >= 1_900_000, "time for the first one's memory to come back"


async def test_head_15_a_call_to_a_loaded_model_does_not_look_at_the_folder(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "m")
    await loader.start("--models-interval", "60s")
    await loader.control.LoadModel(load())
    away = loader.models.rename(loader.home / "away")
    backends = loader.backends.rename(loader.home / "no-backends")
    try:
        for name in ("m", "m.bin"):  # its name and its file's name
            await loader.data.Predict(prompt("x"), metadata=named(name))
    finally:
        away.rename(loader.models)
        backends.rename(loader.backends)


async def test_head_17_signal_handlers_do_not_add_up_and_a_second_signal_is_heard(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "m")
    await loader.start("--grace", "60s")

    def caught() -> str:
        status = Path(f"/proc/{loader.service.pid}/status").read_text()
        return next(line for line in status.splitlines() if line.startswith("SigCgt"))

    before = caught()
    for _ in range(3):
        await loader.control.LoadModel(load())
        await loader.control.UnloadModel(unload())
    assert caught() == before
    stream = loader.data.PredictStream(FOREVER, metadata=MODEL)
    await stream.read()
    loader.service.process.send_signal(signal.SIGTERM)
    await eventually(lambda: "stopping" in loader.service.log.read_text(), what="the first signal")
    assert await stream.read(), "calls have their grace"
    loader.service.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(loader.service.process.wait(), SOON) == 0
    assert processes_in(loader.backends) == []


async def test_head_18_the_end_of_a_failed_load_is_no_crash(running: LoaderUnderTest) -> None:
    running.behave("fake", load="refuse")
    await refused(running.control.LoadModel(load()))
    await eventually(lambda: backends_running(running) == 0, what="the end of the process")
    found = await model(running)
    assert found.crash_count == 0 and "no such architecture" in found.state_message
    lines = [r.line.text async for r in running.control.StreamLogs(pb.StreamLogsRequest(name="m"))]
    said = "\n".join([*lines, running.service.log.read_text()])
    assert "exited" not in said and "was killed" not in said


async def test_head_19_unfinished_installs_are_no_backends(loader: LoaderUnderTest) -> None:
    loader.add_backend("good")
    for ending in (".install-tmp", ".install-backup"):
        folder = loader.add_backend(f"good{ending}", load="refuse")
        (folder / "metadata.json").write_text('{"alias": "wanted"}')
    (loader.backends / "good" / "metadata.json").write_text('{"alias": "wanted"}')
    loader.add_model("m", "wanted")
    await loader.start()
    answer = await loader.control.ListBackends(pb.ListBackendsRequest())
    assert not [each.name for each in answer.backends if ".install" in each.name]
    await loader.control.LoadModel(load())
    assert loader.notes("good") == ["load m.bin"]


async def test_head_20_logs_of_odd_names_and_of_models_that_are_not_loaded_yet(
    loader: LoaderUnderTest,
) -> None:
    loader.add_backend("fake")
    for name in ("a#b#c", "a"):
        loader.add_model(name, "fake")
    await loader.start()
    follows = [
        loader.control.StreamLogs(pb.StreamLogsRequest(name=f"models/{name}", follow=True))
        for name in ("a#b#c", "a")
    ]
    first = [asyncio.ensure_future(follow.read()) for follow in follows]
    await loader.control.LoadModel(load("a#b#c"))
    answer = await asyncio.wait_for(first[0], SOON)
    assert answer.line.text.startswith("starting ")
    assert not first[1].done(), "another model's lines"
    await loader.control.LoadModel(load("a"))
    await asyncio.wait_for(first[1], SOON)
    for follow in follows:
        follow.cancel()


async def test_head_20_a_model_is_busy_while_a_call_runs(running: LoaderUnderTest) -> None:
    stream = running.data.PredictStream(FOREVER, metadata=MODEL)
    await stream.read()
    assert (await model(running)).instances[0].active_calls == 1
    stream.cancel()

    async def idle() -> bool:
        return (await model(running)).instances[0].active_calls == 0

    await eventually(idle, what="the end of the call")


async def test_head_21_a_backends_port_asks_for_a_token_of_its_own(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "a", "b")
    await loader.start()
    tokens = set()
    for name in "ab":
        instance = (await loader.control.LoadModel(load(name))).model.instances[0]
        tokens.add(psutil.Process(instance.pid).environ()["LOCALAI_GRPC_AUTH_TOKEN"])
        async with grpc.aio.insecure_channel(instance.address) as channel:
            stub: Any = backend_pb2_grpc.BackendStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.Predict(prompt("x"))
            assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert len(tokens) == 2 and min(map(len, tokens)) >= 32


async def test_head_22_all_calls_share_one_connection(running: LoaderUnderTest) -> None:
    pid = (await running.control.LoadModel(load())).model.instances[0].pid
    stream = running.data.PredictStream(FOREVER, metadata=MODEL)
    await stream.read()
    for _ in range(3):
        calls = (running.data.Predict(prompt("x"), metadata=MODEL) for _ in range(20))
        await asyncio.gather(*calls)
    connections = [
        each
        for each in psutil.Process(pid).net_connections("tcp")
        if each.status == psutil.CONN_ESTABLISHED and each.type == socket.SOCK_STREAM
    ]
    assert len(connections) == 1
    stream.cancel()


async def test_head_23_stdin_is_dev_null_and_a_zombie_is_not_alive(
    loader: LoaderUnderTest,
) -> None:
    loader.add_backend("fake", children=1)
    loader.add_model("m", "fake")
    await loader.start("--kill-timeout", "3s")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    (helper,) = psutil.Process(pid).children()
    helper.kill()
    await eventually(lambda: helper.status() == psutil.STATUS_ZOMBIE, what="a zombie")
    await asyncio.wait_for(loader.control.UnloadModel(unload()), SOON)
    assert "cannot be ended" not in loader.service.log.read_text()


async def test_head_24_nothing_but_the_loop_touches_its_state(loader: LoaderUnderTest) -> None:
    """asyncio's debug mode raises when another thread touches the loop."""
    names = [f"m{number}" for number in range(4)]
    await begin(loader, *names)
    await loader.start(
        "--load-backoff", "10ms",
        "--models-interval", "20ms",
        "--measure-interval", "20ms",
        "--watchdog-interval", "20ms",
        env={"PYTHONASYNCIODEBUG": "1"},
    )  # fmt: skip

    async def client(name: str) -> None:
        await loader.control.LoadModel(load(name))
        await loader.data.Predict(prompt("x"), metadata=named(name))
        await refused(loader.data.Predict(prompt("crash"), metadata=named(name)))
        await loader.data.Predict(prompt("x"), metadata=named(name))
        await loader.control.UnloadModel(unload(name, force=True))

    await asyncio.gather(*map(client, names))
    assert await loader.service.stop() == 0
    log = loader.service.log.read_text()
    assert "Non-thread-safe operation" not in log
    assert "Traceback" not in log and "never awaited" not in log
