"""Regression tests for the defects of LocalAI 2, each named after its number.

tests/unit/loader/test_localai_defects.py checks that none is missing.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from corral.backend import backend_pb2
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
from tests.tools.processes import free_port
from tests.tools.running import LoaderUnderTest, eventually, processes_in

SOON = 10.0
"""Seconds within which an operation that nothing blocks ends, even on a busy machine."""
BUSY = ("--enable-watchdog-busy", "--watchdog-busy-timeout", "500ms", "--watchdog-interval", "50ms")


async def test_v2_01_one_slow_load_does_not_stall_other_models(loader: LoaderUnderTest) -> None:
    loader.add_backend("slow", load="hang")
    loader.add_backend("mute", start="hang")
    loader.add_backend("quick")
    for name, backend in (("slow", "slow"), ("mute", "mute"), ("m", "quick")):
        loader.add_model(name, backend)
    await loader.start()
    stuck = [asyncio.ensure_future(loader.control.LoadModel(load(n))) for n in ("slow", "mute")]
    await eventually(lambda: loader.notes("slow"), what="a load in progress")
    async with asyncio.timeout(SOON):
        await loader.data.Predict(prompt("x"), metadata=MODEL)
        assert (await states(loader))["m"] == READY
        await loader.control.UnloadModel(unload())
    assert not any(one.done() for one in stuck)
    for one in stuck:
        one.cancel()


async def test_v2_02_two_first_calls_start_one_process(running: LoaderUnderTest) -> None:
    running.behave("fake", load_seconds=0.3)

    def calls() -> list[asyncio.Future[Any]]:
        predicts = [running.data.Predict(prompt("x"), metadata=MODEL) for _ in range(2)]
        loads = [running.control.LoadModel(load()) for _ in range(2)]
        return [asyncio.ensure_future(call) for call in (*predicts, *loads)]

    first = calls()
    await eventually(lambda: running.notes("fake"), what="the load")
    await asyncio.gather(*first, *calls())
    assert running.notes("fake") == ["load m.bin"]
    assert backends_running(running) == 1
    await running.control.UnloadModel(unload())
    assert processes_in(running.backends) == [], "nobody was orphaned"


async def test_v2_03_autoload_uses_external_backends(loader: LoaderUnderTest) -> None:
    """One backend is a program, the other an address."""
    program = loader.add_backend("program")
    shutil.move(program, loader.home / "program")
    loader.add_model("m")
    (loader.models / "m.bin").write_bytes(b"no known format")
    await loader.start("--external-backend", f"mine={loader.home / 'program' / 'run.sh'}")
    assert (await loader.control.LoadModel(load())).model.backend == "mine"
    await loader.service.stop()
    await loader.channel.close()
    address = f"127.0.0.1:{free_port()}"
    async with standalone(loader.home / "program", address):
        await loader.start("--external-backend", f"afar={address}")
        assert (await loader.control.LoadModel(load())).model.backend == "afar"


@asynccontextmanager
async def standalone(folder: Path, address: str) -> AsyncIterator[None]:
    """Run a scripted backend without a loader."""
    process = await asyncio.create_subprocess_exec(folder / "run.sh", "--addr", address, cwd=folder)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            await asyncio.wait_for(channel.channel_ready(), SOON)
        yield
    finally:
        process.kill()
        await process.wait()


async def test_v2_04_the_watchdog_and_a_call_do_not_wait_for_each_other(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "m")
    await loader.start(*BUSY)
    error = await asyncio.wait_for(
        refused(loader.data.Predict(prompt("wait"), metadata=MODEL)), SOON
    )
    assert "no progress" in error.message
    await loader.data.Predict(prompt("x"), metadata=MODEL, timeout=SOON)


async def test_v2_05_the_watchdog_can_be_stopped(loader: LoaderUnderTest) -> None:
    await begin(loader, "m")
    await loader.start(*BUSY, "--enable-watchdog-idle", "--enable-memory-reclaimer")
    await loader.control.LoadModel(load())
    off = change(loader, watchdog_idle=False, watchdog_busy=False, memory_reclaimer=False)
    await asyncio.wait_for(off, SOON)
    await asyncio.wait_for(change(loader, watchdog_idle=True), SOON)
    assert await loader.service.stop(timeout=SOON) == 0


async def test_v2_06_parallel_traffic_does_not_hide_a_stuck_call(loader: LoaderUnderTest) -> None:
    await begin(loader, "m")
    await loader.start(*BUSY)
    await loader.control.LoadModel(load())
    stuck = asyncio.ensure_future(refused(loader.data.Predict(prompt("wait"), metadata=MODEL)))
    async with asyncio.timeout(SOON):
        while not stuck.done():
            with suppress(grpc.aio.AioRpcError):  # the call that is cut off with it
                await loader.data.Predict(prompt("x"), metadata=MODEL)
    assert "no progress" in stuck.result().message


async def test_v2_06_the_end_of_one_call_does_not_make_the_others_idle(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "m")
    await loader.start(
        "--enable-watchdog-idle",
        "--watchdog-idle-timeout", "200ms",
        "--watchdog-interval", "20ms",
    )  # fmt: skip
    stream = loader.data.PredictStream(backend_pb2.PredictOptions(Tokens=80), metadata=MODEL)
    await stream.read()
    await loader.data.Predict(prompt("x"), metadata=MODEL)
    for _ in range(79):
        assert await stream.read()
        assert (await states(loader))["m"] == READY
    assert await stream.read() is grpc.aio.EOF


async def test_v2_07_a_model_in_use_is_not_stopped_when_another_call_ends(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "m")
    await loader.start("--drain-timeout", "300ms")
    stream = loader.data.PredictStream(FOREVER, metadata=MODEL)
    await stream.read()
    await loader.data.Predict(prompt("x"), metadata=MODEL)
    assert (await refused(loader.control.UnloadModel(unload()))).reason == "MODEL_BUSY"
    assert await stream.read()
    stream.cancel()


async def test_v2_08_all_can_be_stopped_while_models_come(loader: LoaderUnderTest) -> None:
    names = [f"m{number}" for number in range(8)]
    await begin(loader, *names)
    await loader.start()
    loads = [asyncio.ensure_future(loader.control.LoadModel(load(name))) for name in names]
    await eventually(lambda: processes_in(loader.backends), what="a first process")
    await asyncio.wait_for(loader.control.Drain(pb.DrainRequest()), 2 * SOON)
    for ended in await asyncio.gather(*loads, return_exceptions=True):
        assert isinstance(ended, pb.LoadModelResponse | grpc.aio.AioRpcError), ended
    assert set((await states(loader)).values()) == {UNLOADED}
    assert processes_in(loader.backends) == []


@pytest.mark.parametrize("exec_", [True, False])
async def test_v2_09_helpers_are_ended_and_the_backend_may_end_in_peace(
    loader: LoaderUnderTest, exec_: bool
) -> None:
    loader.add_backend("fake", exec_=exec_, children=2, sigterm_seconds=0.2)
    loader.add_model("m", "fake")
    await loader.start()
    await loader.control.LoadModel(load())
    assert len(processes_in(loader.backends)) >= 3
    await loader.control.UnloadModel(unload())
    assert processes_in(loader.backends) == []
    assert loader.notes("fake")[-1] == "ended in peace"


async def test_v2_10_looking_and_unloading_take_the_name_as_it_is(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake")
    for name in ("chat", "chat.bin"):
        loader.add_model(name, "fake", parameters={"model": f"{name}-weights.gguf"})
    await loader.start()
    for name in ("chat", "chat.bin"):
        await loader.control.LoadModel(load(name))
    pid = (await model(loader, "chat")).instances[0].pid
    assert (await loader.data.Health(backend_pb2.HealthMessage(), metadata=named("chat"))).message
    await loader.control.UnloadModel(unload("chat"))
    assert not psutil.pid_exists(pid)
    assert await states(loader) == {"chat": UNLOADED, "chat.bin": READY}


async def test_v2_11_models_of_one_backend_without_files_are_kept_apart(
    loader: LoaderUnderTest,
) -> None:
    loader.add_backend("local-store")
    for name in ("one", "other"):
        loader.add_model(name, "local-store", parameters={})
    await loader.start()
    pids = {
        (await loader.control.LoadModel(load(n))).model.instances[0].pid for n in ("one", "other")
    }
    assert len(pids) == 2
    await loader.control.UnloadModel(unload("one"))
    assert await states(loader) == {"one": UNLOADED, "other": READY}


async def test_v2_12_an_address_that_is_dead_is_not_returned_for_ever(
    loader: LoaderUnderTest,
) -> None:
    folder = loader.add_backend("program")
    address = f"127.0.0.1:{free_port()}"
    loader.add_model("m", "afar", grpc={"attempts": 10, "attempts_sleep_time": 1})
    async with standalone(folder, address):
        await loader.start("--external-backend", f"afar={address}", "--load-backoff", "50ms")
        await loader.data.Predict(prompt("x"), metadata=MODEL)
    error = await refused(loader.data.Predict(prompt("x"), metadata=MODEL))
    assert error.reason == "SERVICE_UNREACHABLE"
    assert (await states(loader))["m"] != READY
    async with standalone(folder, address):
        await loader.data.Predict(prompt("x"), metadata=MODEL, timeout=2 * SOON)


async def test_v2_13_failed_loads_are_told_and_leave_nothing_behind(
    loader: LoaderUnderTest,
) -> None:
    await begin(loader, "m")
    loader.behave("fake", load="refuse")
    temporary = loader.home / "tmp"
    temporary.mkdir()
    await loader.start(env={"TMPDIR": str(temporary)})
    process = psutil.Process(loader.service.pid)

    async def fail(times: int) -> None:
        for _ in range(times):
            error = await refused(loader.control.LoadModel(load(reset_backoff=True)))
            assert error.reason == "MODEL_LOAD_FAILED"

    def held() -> tuple[int, int, list[Path]]:
        return process.num_fds(), process.num_threads(), sorted(temporary.rglob("*"))

    await fail(7)  # enough to fill the thread pool
    descriptors, threads, files = held()
    await fail(5)

    def no_more() -> bool:
        now = held()
        return now[0] <= descriptors and now[1] <= threads and now[2] == files

    await eventually(no_more, what="as few descriptors, threads and files as before")


async def test_v2_13_what_cannot_be_loaded_at_the_start_is_told(loader: LoaderUnderTest) -> None:
    await begin(loader, "m")
    loader.add_backend("bad", load="refuse")
    loader.add_model("broken", "bad")
    await loader.start(*(f"--load-to-memory={name}" for name in ("broken", "missing", "m")))

    async def loaded() -> bool:
        return (await states(loader))["m"] == READY

    await eventually(loaded, what="the model that can be loaded")

    def told() -> bool:
        errors = [
            line for line in loader.service.log.read_text().splitlines() if "at the start" in line
        ]
        return all(
            any(said in line for line in errors) for said in ("no such architecture", "missing")
        )

    await eventually(told, what="both errors in the log")


async def test_v2_14_the_log_says_what_an_alias_means_and_errors_what_was_asked(
    loader: LoaderUnderTest,
) -> None:
    loader.add_backend("llama-cpp")
    loader.add_model("m", "llama")
    await loader.start()
    await loader.control.LoadModel(load())
    lines = [r.line.text async for r in loader.control.StreamLogs(pb.StreamLogsRequest(name="m"))]
    assert any(line.startswith("starting llama-cpp ") for line in lines), lines
    loader.add_model("odd", "embedded-store")
    error = await refused(loader.control.LoadModel(load("odd")))
    assert error.reason == "BACKEND_NOT_FOUND" and "embedded-store" in error.message
