"""Recovery from misbehaving backends: more memory to retry with, no false alarms, no leftovers."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2 as pb
from services.common.rpc.status import from_rpc_error
from tests.tools.loader_calls import MODEL, backends_running, load, prompt
from tests.tools.running import LoaderUnderTest, eventually

MIB = 1024**2


async def model(loader: LoaderUnderTest) -> pb.Model:
    answer: pb.GetModelResponse = await loader.control.GetModel(pb.GetModelRequest(name="m"))
    return answer.model


def weights(loader: LoaderUnderTest, mib: int) -> None:
    with (loader.models / "m.bin").open("wb") as file:
        file.truncate(mib * MIB)


async def test_a_load_that_lacked_memory_gets_more_room(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", load="oom", load_failures=1)
    loader.add_model("m", "fake")
    weights(loader, 100)
    await loader.start()
    before = await loader.control.PlanEviction(pb.PlanEvictionRequest(name="m"))
    loaded = (await loader.control.LoadModel(load())).model
    assert loaded.state == pb.Model.STATE_READY and not loaded.failures
    assert len(loader.notes("fake")) == 2
    await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"))
    after = await loader.control.PlanEviction(pb.PlanEvictionRequest(name="m"))
    assert before.memory[0].basis == pb.MemoryReservation.BASIS_ESTIMATED
    assert after.memory[0].basis == pb.MemoryReservation.BASIS_LEARNED
    assert after.memory[0].bytes > before.memory[0].bytes >= 100 * MIB


async def test_it_is_tried_once_more_and_not_for_ever(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", load="oom")
    loader.add_model("m", "fake")
    await loader.start()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await loader.control.LoadModel(load())
    assert from_rpc_error(failed.value).reason == "MODEL_LOAD_FAILED"
    assert len(loader.notes("fake")) == 2
    assert [failure.count for failure in (await model(loader)).failures] == [1]


async def test_a_second_try_that_has_no_room_tells_the_first_ones_error(
    loader: LoaderUnderTest,
) -> None:
    loader.add_backend("fake", load="oom")
    loader.add_model("m", "fake", memory="900MiB")
    await loader.start("--ram-budget", "1GiB")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await loader.control.LoadModel(load())
    error = from_rpc_error(failed.value)
    assert error.reason == "MODEL_LOAD_FAILED" and "memory" in error.message
    assert len(loader.notes("fake")) == 1


async def test_a_backend_that_is_busy_is_not_taken_for_dead(loader: LoaderUnderTest) -> None:
    """LocalAI's Python backends answer nothing, not even Health, while they predict."""
    loader.add_backend("fake", workers=1, call_seconds=1.5)
    loader.add_model("m", "fake")
    await loader.start("--health-timeout", "200ms")
    calls = [loader.data.Predict(prompt("x"), metadata=MODEL, timeout=20) for _ in range(2)]
    await asyncio.gather(*calls)
    assert (await model(loader)).instances[0].generation == 1


async def test_a_frozen_backend_is_ended_by_the_busy_watchdog(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", call_seconds=0.5)
    loader.add_model("m", "fake")
    await loader.start(
        "--watchdog-busy",
        "--watchdog-busy-timeout", "1s",
        "--watchdog-interval", "50ms",
        "--free-timeout", "200ms",
        "--terminate-timeout", "200ms",
    )  # fmt: skip
    loader.behave("fake", freeze_after=0.1, call_seconds=0.5)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await loader.data.Predict(prompt("x"), metadata=MODEL, timeout=30)
    assert "no progress" in from_rpc_error(failed.value).message
    await eventually(lambda: backends_running(loader) == 0, what="end of the frozen process")


async def test_a_probe_that_hangs_does_not_keep_a_model(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    await loader.start()
    await loader.control.LoadModel(load())
    loader.behave("fake", health="hang")
    probe = asyncio.ensure_future(
        loader.data.Health(backend_pb2.HealthMessage(), metadata=MODEL, timeout=20)
    )

    async def unloaded() -> bool:
        answer = await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"), timeout=5)
        return bool(answer.model.state == pb.Model.STATE_UNLOADED)

    assert await unloaded()
    with pytest.raises(grpc.aio.AioRpcError):
        await probe


async def test_learned_needs_outlive_the_loader(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", load_memory_mib=64)
    loader.add_model("m", "fake")
    await loader.start()
    loaded = (await loader.control.LoadModel(load())).model
    assert loaded.memory[0].basis == pb.MemoryReservation.BASIS_MEASURED
    assert loaded.memory[0].bytes > 64 * MIB
    await loader.service.stop()
    await loader.channel.close()
    (kept,) = loader.home.rglob("footprints.json")
    assert json.loads(kept.read_text())
    await loader.start()
    plan = await loader.control.PlanEviction(pb.PlanEvictionRequest(name="m"))
    assert plan.memory[0].basis == pb.MemoryReservation.BASIS_LEARNED
    assert plan.memory[0].bytes > 64 * MIB
