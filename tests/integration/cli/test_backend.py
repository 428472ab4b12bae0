"""`corral backend fake`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc
from corral.loader.v1 import loader_pb2
from services.common.rpc.status import from_rpc_error
from tests.tools.corral_command import corral, started
from tests.tools.loader_calls import MODEL, load
from tests.tools.running import LoaderUnderTest
from tests.tools.service import announced


async def test_it_serves_in_the_foreground(tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/s"
    arguments = ("backend", "fake", "--addr", socket, "--set", "needs_model=false")
    async with started(tmp_path, *arguments) as process:
        assert await announced(process, "fake") == socket
        async with grpc.aio.insecure_channel(socket) as channel:
            stub = backend_pb2_grpc.BackendStub(channel)
            assert (await stub.Predict(pb.PredictOptions(Prompt="hi"))).message == b"hi"
        process.terminate()
        assert await process.wait() == 0, "the command has become the backend"


async def test_its_list_and_its_complaints(tmp_path: Path) -> None:
    listed = await corral(tmp_path, "backend", "fake", "--list")
    assert listed.code == 0 and "crash_after_messages=0" in listed.out
    wrong = await corral(tmp_path, "backend", "fake", "--set", "crsh=true")
    assert wrong.code == 2 and "did you mean 'crash'" in wrong.err


@pytest.mark.parametrize("more", [[], ["--no-exec"]])
async def test_an_installed_one_is_found_by_a_loader(
    loader: LoaderUnderTest, tmp_path: Path, more: list[str]
) -> None:
    arguments = ["backend", "fake", "--install", str(loader.backends), "--name", "flaky"]
    done = await corral(tmp_path, *arguments, "--set", "load_failures=1", *more)
    folder = loader.backends / "flaky"
    assert (done.code, done.out) == (0, f"{folder}\n")
    assert json.loads((folder / "behaviour.json").read_text()) == {"load_failures": 1}
    again = await corral(tmp_path, *arguments)
    assert again.code == 2 and "exists" in again.err
    loader.add_model("m", "flaky")
    await loader.start("--load-backoff", "0s")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await loader.control.LoadModel(load())
    assert from_rpc_error(failed.value).reason == "MODEL_LOAD_FAILED"
    model = (await loader.control.LoadModel(load())).model
    assert model.instances[0].address.startswith("unix:")
    reply = await loader.data.Predict(pb.PredictOptions(Prompt="hi"), metadata=MODEL)
    assert reply.message == b"hi"
    await loader.control.UnloadModel(loader_pb2.UnloadModelRequest(name="m"))


async def test_the_bundled_program_is_no_installed_backend(running: LoaderUnderTest) -> None:
    listed = await running.control.ListBackends(loader_pb2.ListBackendsRequest())
    assert [item.name for item in listed.backends] == ["backends/fake"]
