"""The monitor over gRPC, with a loader and backends that are real processes."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import pytest
from grpc import aio

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2
from corral.monitor.v1 import monitor_pb2 as pb
from corral.monitor.v1 import monitor_pb2_grpc
from services.common.errors import (
    InvalidRequestError,
    ModelBusyError,
    ModelNotFoundError,
    ModelNotLoadedError,
    NotImplementedYetError,
    ServiceUnreachableError,
)
from services.common.rpc.channels import call, open_channel
from services.common.rpc.health import HealthServicer
from services.common.rpc.server import serving
from services.common.rpc.status import from_rpc_error
from services.monitor.config import MonitorSettings
from services.monitor.wiring import build
from tests.fakes.loader_fake import LoaderFake, ModelFake, child
from tests.tools.service import installed, running_service
from tests.tools.waiting import eventually

State = pb.ModelStatus
Loaded = loader_pb2.Model
IDLE = "import time; print('ready', flush=True); time.sleep(60)"


@dataclass
class World:
    """A loader, a monitor that polls it, and a client of the monitor."""

    loader: LoaderFake
    stub: monitor_pb2_grpc.MonitorServiceAsyncStub

    async def status(self, model: str = "m") -> pb.ModelStatus:
        response = await call(self.stub.GetStatus, pb.GetStatusRequest(name=model), timeout=10)
        return response.status

    async def sample(self, model: str = "m") -> pb.ProcessSample:
        request = pb.SampleProcessRequest(name=model)
        return (await call(self.stub.SampleProcess, request, timeout=10)).sample

    async def shut_down(self, model: str = "m", *, force: bool = False) -> None:
        request = pb.ShutdownModelRequest(name=model, force=force)
        await call(self.stub.ShutdownModel, request, timeout=10)


@asynccontextmanager
async def monitoring(
    loader_address: str, state: Path
) -> AsyncIterator[monitor_pb2_grpc.MonitorServiceAsyncStub]:
    settings = MonitorSettings(
        listen="127.0.0.1:0",
        loader=loader_address,
        metrics=None,
        state_path=state,
        status_timeout=0.4,
        grace=1.0,
    )
    health = HealthServicer()
    async with AsyncExitStack() as stack:
        mounts = await build(settings, stack, health)
        async with (
            serving(name="monitor", settings=settings, mounts=mounts, health=health) as server,
            open_channel(server.address) as channel,
        ):
            yield monitor_pb2_grpc.MonitorServiceStub(channel)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with LoaderFake().serving() as loader, monitoring(loader.address, tmp_path) as stub:
        yield World(loader, stub)
    assert loader.loads == 0


@pytest.fixture
def process() -> Iterator[Popen[str]]:
    with child(IDLE) as made:
        yield made


def running(process: Popen[str], status: str, **facts: object) -> ModelFake:
    return ModelFake(pid=process.pid, start_time=time.time(), status=status, **facts)  # type: ignore[arg-type]


async def test_the_backends_own_word(world: World, process: Popen[str]) -> None:
    world.loader.models["m"] = running(process, "ok")
    status = await world.status("models/m")
    assert status.model == "models/m"
    assert status.state == State.STATE_READY
    assert status.source == State.SOURCE_BACKEND
    assert status.memory_bytes == 1000
    assert dict(status.memory_breakdown_bytes) == {"weights": 900}
    assert status.process.pid == process.pid
    assert status.process.rss_bytes > 1 << 20
    assert status.backend_error == ""
    assert abs(status.time.ToNanoseconds() / 1e9 - time.time()) < 5


async def test_what_is_not_known_is_not_0(world: World, process: Popen[str]) -> None:
    world.loader.models["elsewhere"] = ModelFake(pid=0)
    assert not (await world.status("elsewhere")).HasField("memory_bytes")
    # The backend's number is an unsigned 64-bit integer, which half the languages lack.
    most = backend_pb2.MemoryUsageData(total=2**64 - 1, breakdown={"all": 2**63})
    answer = backend_pb2.StatusResponse(state=backend_pb2.StatusResponse.READY, memory=most)
    world.loader.models["m"] = running(process, "ok", answer=answer)
    status = await world.status()
    assert status.memory_bytes == status.memory_breakdown_bytes["all"] == 2**63 - 1


@pytest.mark.parametrize(
    ("told", "active", "expected"),
    [
        (backend_pb2.StatusResponse.UNINITIALIZED, 0, State.STATE_READY),
        (backend_pb2.StatusResponse.UNINITIALIZED, 1, State.STATE_BUSY),
        (backend_pb2.StatusResponse.READY, 2, State.STATE_BUSY),
        (backend_pb2.StatusResponse.BUSY, 0, State.STATE_BUSY),
        (backend_pb2.StatusResponse.ERROR, 0, State.STATE_ERROR),
    ],
)
async def test_a_backends_state_is_corrected_where_the_loader_knows_better(
    world: World,
    process: Popen[str],
    told: backend_pb2.StatusResponse.State.ValueType,
    active: int,
    expected: pb.ModelStatus.State.ValueType,
) -> None:
    answer = backend_pb2.StatusResponse(state=told)
    world.loader.models["m"] = running(process, "ok", answer=answer, active_calls=active)
    status = await world.status()
    assert status.state == expected
    assert status.source == State.SOURCE_BACKEND
    # A backend that reports no memory gets its process's.
    assert status.memory_bytes == status.process.pss_bytes > 0


async def test_a_backend_without_status_is_sampled(world: World, process: Popen[str]) -> None:
    world.loader.models["m"] = running(process, "unimplemented")
    status = await world.status()
    assert status.state == State.STATE_READY
    assert status.source == State.SOURCE_PROCESS
    assert "not implemented" in status.backend_error
    assert status.memory_bytes == status.process.pss_bytes > 0
    assert status.process.process_count == 1
    world.loader.models["m"].active_calls = 3
    status = await world.status()
    assert status.state == State.STATE_BUSY
    assert status.active_calls == 3


@pytest.mark.parametrize("behaviour", ["hang", "error", "wrong-bytes", "wrong-state"])
async def test_a_backend_that_fails(world: World, process: Popen[str], behaviour: str) -> None:
    world.loader.models["m"] = running(process, behaviour)
    begun = time.monotonic()
    status = await world.status()
    assert time.monotonic() - begun < 2
    assert status.state == State.STATE_ERROR
    assert status.source == State.SOURCE_PROCESS
    assert status.backend_error
    assert status.process.rss_bytes > 0
    # A backend in the middle of a call may well not answer.
    world.loader.models["m"].active_calls = 1
    assert (await world.status()).state == State.STATE_BUSY


@pytest.mark.parametrize("state", [Loaded.STATE_STARTING, Loaded.STATE_LOADING])
async def test_a_model_that_is_loading_is_not_asked(
    world: World, process: Popen[str], state: loader_pb2.Model.State
) -> None:
    world.loader.models["m"] = running(process, "hang", state=state)
    status = await world.status()
    assert status.state == State.STATE_UNINITIALIZED
    assert status.source == State.SOURCE_PROCESS
    assert "loading" in status.backend_error
    assert world.loader.models["m"].asked == 0


async def test_a_process_that_is_gone(world: World, process: Popen[str]) -> None:
    world.loader.models["m"] = running(process, "unimplemented", active_calls=1)
    process.kill()
    process.wait()
    status = await world.status()
    assert status.state == State.STATE_ERROR
    assert "is gone" in status.backend_error
    assert not status.HasField("process")
    with pytest.raises(ModelNotLoadedError, match="is gone"):
        await world.sample()


async def test_a_number_that_another_process_has_now(world: World, process: Popen[str]) -> None:
    world.loader.models["m"] = ModelFake(pid=process.pid, start_time=time.time() - 3600)
    status = await world.status()
    assert status.state == State.STATE_ERROR
    assert "another" in status.backend_error


async def test_a_backend_on_another_machine(world: World) -> None:
    world.loader.models["m"] = ModelFake(status="ok")
    status = await world.status()
    assert status.source == State.SOURCE_BACKEND
    assert not status.HasField("process")
    world.loader.models["m"].status = "unimplemented"
    status = await world.status()
    assert status.state == State.STATE_READY
    assert not status.HasField("process")
    with pytest.raises(ModelNotLoadedError, match="another machine"):
        await world.sample()


async def test_a_model_that_is_not_loaded(world: World, process: Popen[str]) -> None:
    world.loader.models["m"] = ModelFake(
        state=Loaded.STATE_UNLOADED, state_message="idle for 15 min"
    )
    with pytest.raises(ModelNotLoadedError, match=r"idle for 15 min.*loaded models: none") as none:
        await world.status()
    assert none.value.resource is not None
    assert none.value.resource.name == "m"
    world.loader.models["b"] = running(process, "ok")
    world.loader.models["a"] = running(process, "ok", state=Loaded.STATE_LOADING)
    with pytest.raises(ModelNotLoadedError, match="loaded models: a, b"):
        await world.status()
    with pytest.raises(ModelNotLoadedError, match="loaded models: a, b"):
        await world.sample()


async def test_a_model_that_is_unloaded_meanwhile(world: World, process: Popen[str]) -> None:
    world.loader.models["m"] = running(process, "not-loaded")
    with pytest.raises(ModelNotLoadedError):
        await world.status()


async def test_errors_in_the_request(world: World) -> None:
    with pytest.raises(ModelNotFoundError):
        await world.status("nope")
    for name in ("", "models/"):
        with pytest.raises(InvalidRequestError, match="model"):
            await world.status(name)
        with pytest.raises(InvalidRequestError, match="model"):
            await world.sample(name)
        with pytest.raises(InvalidRequestError, match="model"):
            await world.shut_down(name)


async def test_samples(world: World, process: Popen[str]) -> None:
    world.loader.models["m"] = running(process, "hang")
    sample = await world.sample("models/m")
    assert sample.pid == process.pid
    assert sample.thread_count == 1
    assert sample.open_file_count > 0
    assert abs(sample.start_time.ToNanoseconds() / 1e9 - time.time()) < 5
    assert world.loader.models["m"].asked == 0


async def test_shutting_down(world: World) -> None:
    with child(IDLE) as process:
        world.loader.models["m"] = running(process, "ok", active_calls=1)
        with pytest.raises(ModelBusyError):
            await world.shut_down()
        await world.shut_down(force=True)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
        await world.shut_down()
    with pytest.raises(ModelNotFoundError):
        await world.shut_down("nope")


async def test_what_is_not_there_yet(world: World) -> None:
    with pytest.raises(NotImplementedYetError):
        await call(world.stub.GetSystem, pb.GetSystemRequest(), timeout=5)
    streams = (
        world.stub.WatchStatus(pb.WatchStatusRequest(), timeout=5),
        world.stub.WatchSystem(pb.WatchSystemRequest(), timeout=5),
    )
    for stream in streams:
        with pytest.raises(aio.AioRpcError) as caught:
            await stream.read()
        assert isinstance(from_rpc_error(caught.value), NotImplementedYetError)


async def test_a_loader_that_is_away_and_comes_back(tmp_path: Path) -> None:
    loader = LoaderFake()
    async with loader.serving():
        pass
    async with monitoring(loader.address, tmp_path) as stub:
        world = World(loader, stub)
        for asked in (world.status, world.sample, world.shut_down):
            with pytest.raises(ServiceUnreachableError, match=f"loader at {loader.address}"):
                await asked()
        async with loader.serving(loader.address):
            with child(IDLE) as process:
                loader.models["m"] = running(process, "ok")

                async def ready() -> bool:
                    try:
                        return (await world.status()).state == State.STATE_READY
                    except ServiceUnreachableError:
                        return False

                await eventually(ready, timeout=5, what="the loader's answer")


async def test_the_process_of_the_monitor(tmp_path: Path) -> None:
    async with LoaderFake().serving() as loader:
        flags = (f"--loader={loader.address}", "--metrics=", f"--state-path={tmp_path}")
        async with running_service(
            "monitor", tmp_path, *flags, program=[installed("corral-monitor")]
        ) as service:
            with child(IDLE) as process:
                loader.models["m"] = running(process, "ok")
                async with open_channel(service.address) as channel:
                    world = World(loader, monitor_pb2_grpc.MonitorServiceStub(channel))
                    assert (await world.status()).state == State.STATE_READY
            assert await service.stop(10) == 0
            # Only the ready line.
            assert service.process.stdout is not None
            assert await service.process.stdout.read() == b""
