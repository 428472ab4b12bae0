"""Failed loads and backends that die: the error the caller gets, and what happens next."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import grpc
import pytest

from corral.loader.v1 import loader_pb2 as pb
from services.common.rpc.status import from_rpc_error
from tests.tools.loader_calls import FOREVER, MODEL, backends_running, load, prompt
from tests.tools.running import LoaderUnderTest, eventually


async def test_killed_while_streaming(running: LoaderUnderTest) -> None:
    """The client gets UNAVAILABLE with the cause, and its next call works."""
    stream = running.data.PredictStream(FOREVER, metadata=MODEL)
    await stream.read()
    pid = (await running.control.GetModel(pb.GetModelRequest(name="m"))).model.instances[0].pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        while True:
            await stream.read()
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    error = from_rpc_error(failed.value)
    assert error.reason == "BACKEND_CRASHED"
    assert "SIGKILL" in error.message and error.metadata["signal"] == "SIGKILL"
    reply = await running.data.Predict(prompt("again"), metadata=MODEL, timeout=10)
    assert str(pid).encode() not in reply.message


async def test_a_crash_carries_the_last_words(running: LoaderUnderTest) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.data.Predict(prompt("crash"), metadata=MODEL)
    error = from_rpc_error(failed.value)
    assert error.reason == "BACKEND_CRASHED"
    assert "about to crash" in error.message


async def test_repeated_crashes_back_off(running: LoaderUnderTest) -> None:
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError):
            await running.data.Predict(prompt("crash"), metadata=MODEL)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.data.Predict(prompt("x"), metadata=MODEL)
    error = from_rpc_error(failed.value)
    assert error.reason == "LOAD_BACKOFF" and error.retry_after and error.retry_after <= 1

    async def works() -> bool:
        try:
            await running.data.Predict(prompt("x"), metadata=MODEL)
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(works, what="recovery after the back-off")


@pytest.mark.parametrize(
    ("behaviour", "reason", "said"),
    [
        ({"start": "exit:3"}, "BACKEND_START_FAILED", "exited with code 3"),
        ({"load": "refuse"}, "MODEL_LOAD_FAILED", "no such architecture"),
        ({"load": "error"}, "MODEL_LOAD_FAILED", "the file is broken"),
        ({"load": "crash"}, "MODEL_LOAD_FAILED", "SIGABRT"),
    ],
)
async def test_failed_loads(
    running: LoaderUnderTest, behaviour: dict[str, Any], reason: str, said: str
) -> None:
    running.behave("fake", **behaviour)
    started = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.control.LoadModel(load())
    error = from_rpc_error(failed.value)
    assert error.reason == reason and said in error.message
    assert time.monotonic() - started < 10, "an exit is an event, not a time-out"
    if "crash" in behaviour.values():
        assert "tensor 7" in error.message
    if behaviour.get("start") == "exit:3":
        assert "cannot open libfoo.so" in error.message
    model = (await running.control.GetModel(pb.GetModelRequest(name="m"))).model
    assert model.state == pb.Model.STATE_BACKOFF and model.HasField("retry_time")
    assert said in model.state_message
    await eventually(lambda: backends_running(running) == 0, what="no process left")


async def test_a_mended_configuration_ends_the_backoff(running: LoaderUnderTest) -> None:
    running.add_backend("good")
    running.behave("fake", load="refuse")
    with pytest.raises(grpc.aio.AioRpcError):
        await running.control.LoadModel(load())
    running.add_model("m", "good")
    await running.control.LoadModel(load(), timeout=10)


async def test_a_backend_that_never_answers(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", start="hang")
    loader.add_model("m", "fake", grpc={"attempts": 1, "attempts_sleep_time": 1})
    await loader.start()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await loader.control.LoadModel(load())
    assert "grpc service not ready" in (failed.value.details() or "")
    assert from_rpc_error(failed.value).reason == "BACKEND_NOT_READY"
    await eventually(lambda: backends_running(loader) == 0, what="no process left")


async def test_autoload_tries_each_backend(loader: LoaderUnderTest) -> None:
    loader.add_backend("a-bad", load="refuse")
    loader.add_backend("b-good")
    loader.add_model("m")
    await loader.start()
    model = (await loader.control.LoadModel(load())).model
    assert model.backend == "b-good"


async def test_unknown_names(running: LoaderUnderTest) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.control.LoadModel(load("nobody"))
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert from_rpc_error(failed.value).reason == "MODEL_NOT_FOUND"
    running.add_model("odd", "missing-backend")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.control.LoadModel(load("odd"))
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert "backend not found: missing-backend" in (failed.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.control.LoadModel(load("../etc/passwd"))
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_candidate_in_backoff_is_passed_over(loader: LoaderUnderTest) -> None:
    loader.add_backend("first", load="refuse")
    loader.add_backend("second")
    loader.add_model("m")
    await loader.start("--load-backoff", "60s")
    for _ in range(2):
        loaded = (await loader.control.LoadModel(load())).model
        assert loaded.backend == "second"
        (failure,) = loaded.failures
        assert (failure.backend, failure.count) == ("first", 1)
        assert failure.reason == "MODEL_LOAD_FAILED" and failure.HasField("retry_time")
        await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"))
    assert len(loader.notes("first")) == 1, "it was not tried again"
    loader.behave("second", load="refuse")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await loader.control.LoadModel(load())
    text = from_rpc_error(failed.value).message
    assert text.startswith("could not load model - all backends returned error: ")
    assert "[first]: " in text and "[second]: " in text
    assert len(loader.notes("first")) == 1
    loader.behave("first")
    await loader.control.LoadModel(load(reset_backoff=True))
    assert (await loader.control.GetModel(pb.GetModelRequest(name="m"))).model.backend == "first"


async def test_a_load_in_which_nothing_moves_is_given_up(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", load="hang")
    loader.add_model("m", "fake")
    await loader.start("--load-stall-timeout", "1s")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await loader.control.LoadModel(load(), timeout=20)
    error = from_rpc_error(failed.value)
    assert error.reason == "MODEL_LOAD_FAILED" and "load_stall_timeout" in error.message
    await eventually(lambda: backends_running(loader) == 0, what="end of the process")
