"""External backends, run by the test itself: connected to, but never started or stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc
from corral.loader.v1 import loader_pb2
from services.common.rpc.status import from_rpc_error
from tests.tools.running import LoaderUnderTest, eventually

MODEL = (("corral-model", "m"),)


class Backend(backend_pb2_grpc.BackendServicer):
    def __init__(self) -> None:
        self.loaded = False
        self.saw: list[str] = []

    def Health(self, request: Any, context: Any) -> pb.Reply:
        return pb.Reply(message=b"OK")

    def LoadModel(self, request: Any, context: Any) -> pb.Result:
        self.loaded = True
        self.saw.append("load")
        return pb.Result(success=True)

    def Predict(self, request: pb.PredictOptions, context: Any) -> pb.Reply:
        if not self.loaded:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "model not loaded")
        if request.Prompt == "overloaded":
            context.abort(grpc.StatusCode.UNAVAILABLE, "come back later")
        return pb.Reply(message=request.ModelIdentity.encode())

    def PredictStream(self, request: Any, context: Any) -> Iterator[pb.Reply]:
        while context.is_active():
            yield pb.Reply(message=b"x")
            time.sleep(0.01)


class Served:
    """A backend at an address, which may go away and come back as another one."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        self.backend = Backend()
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        backend_pb2_grpc.add_BackendServicer_to_server(self.backend, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def listen(self, address: str) -> None:
        self.stop()
        self._server = grpc.server(ThreadPoolExecutor(16))
        backend_pb2_grpc.add_BackendServicer_to_server(self.backend, self._server)
        self._server.add_insecure_port(address)
        self._server.start()

    def stop(self) -> None:
        stopped: threading.Event = self._server.stop(0)
        stopped.wait(5)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.stop()


@pytest.fixture
async def running(loader: LoaderUnderTest, served: Served) -> LoaderUnderTest:
    loader.add_model("m", "afar")
    (loader.models / "other-name.yaml").write_text("name: other-name\nalias: m\n")
    await loader.start("--external-backend", f"afar=127.0.0.1:{served.port}")
    await loader.data.Predict(pb.PredictOptions(), metadata=MODEL, timeout=10)
    return loader


async def test_its_socket_outlives_the_model(
    loader: LoaderUnderTest, served: Served, tmp_path: Path
) -> None:
    served.listen(f"unix:{tmp_path}/afar.sock")
    loader.add_model("m", "afar")
    await loader.start("--external-backend", f"afar=unix:{tmp_path}/afar.sock")
    for _ in range(2):
        await loader.data.Predict(pb.PredictOptions(), metadata=MODEL, timeout=10)
        await loader.control.UnloadModel(loader_pb2.UnloadModelRequest(name="m"))


async def test_its_own_unavailable_is_no_end_of_it(
    running: LoaderUnderTest, served: Served
) -> None:
    """A call's own UNAVAILABLE is passed on at once, and the other calls continue."""
    stream = running.data.PredictStream(pb.PredictOptions(), metadata=MODEL)
    await stream.read()
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.data.Predict(pb.PredictOptions(Prompt="overloaded"), metadata=MODEL)
    assert failed.value.details() == "come back later"
    assert time.monotonic() - began < 0.4
    assert (await stream.read()).message == b"x"
    assert served.backend.saw == ["load"]
    stream.cancel()


async def test_restarted_between_two_calls_it_is_loaded_again(
    running: LoaderUnderTest, served: Served
) -> None:
    served.stop()
    served.start()

    async def works() -> bool:
        try:
            await running.data.Predict(pb.PredictOptions(), metadata=MODEL, timeout=10)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error.details()
            return False
        return True

    await eventually(works, what="a call at the new backend")
    assert served.backend.saw == ["load"]


async def test_gone_it_is_reported_and_found_again(
    running: LoaderUnderTest, served: Served
) -> None:
    served.stop()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.data.Predict(pb.PredictOptions(), metadata=MODEL, timeout=10)
    assert from_rpc_error(failed.value).reason == "SERVICE_UNREACHABLE"
    loading = running.data.Predict(pb.PredictOptions(), metadata=MODEL, timeout=20)
    served.start()
    await loading


async def test_an_alias_is_a_name_in_the_identity_too(running: LoaderUnderTest) -> None:
    for metadata in ((), (("corral-model", "other-name"),), MODEL):
        identity = "other-name" if metadata != MODEL else "m"
        request = pb.PredictOptions(ModelIdentity=identity)
        assert (await running.data.Predict(request, metadata=metadata)).message == b""
