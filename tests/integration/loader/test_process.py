"""How backend processes are stopped and guarded, and what a loader leaves on disk."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2 as pb
from services.common.rpc.status import from_rpc_error
from services.loader.instances.addresses import BackendAddresses, socket_folder
from tests.tools.processes import descendants
from tests.tools.running import LoaderUnderTest, eventually, processes_in

MODEL = (("corral-model", "m"),)


def unload(force: bool = False) -> pb.UnloadModelRequest:
    return pb.UnloadModelRequest(name="m", force=force)


@pytest.fixture
async def running(loader: LoaderUnderTest) -> LoaderUnderTest:
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    await loader.start("--drain-timeout", "10s")
    return loader


@pytest.mark.parametrize("exec_", [True, False])
async def test_a_backend_behind_a_shell_may_end_in_peace(
    loader: LoaderUnderTest, exec_: bool
) -> None:
    """The shell of a run.sh without `exec` dies of SIGTERM at once; the backend gets its time."""
    loader.add_backend("fake", exec_=exec_, sigterm_seconds=0.3)
    loader.add_model("m", "fake")
    await loader.start()
    await loader.control.LoadModel(pb.LoadModelRequest(name="m"))
    await loader.control.UnloadModel(unload())
    assert loader.notes("fake")[-1] == "ended in peace"
    assert processes_in(loader.backends) == []


async def test_a_dead_guard_is_replaced_though_nothing_happens(running: LoaderUnderTest) -> None:
    await running.control.LoadModel(pb.LoadModelRequest(name="m"))

    def guards() -> list[Any]:
        return descendants(running.service.pid, "guard.py")

    for _ in range(2):
        (guard,) = await eventually(guards, what="a guard")
        guard.kill()
        killed = guard.pid

        def others() -> list[Any]:
            return [one for one in guards() if one.pid != killed]  # noqa: B023

        await eventually(others, what="a new guard")
    running.service.kill()
    await eventually(
        lambda: not processes_in(running.backends), timeout=2, what="the end of all backends"
    )


async def test_two_wishes_to_unload_let_the_calls_end(running: LoaderUnderTest) -> None:
    stream = running.data.PredictStream(backend_pb2.PredictOptions(Tokens=100), metadata=MODEL)
    await stream.read()
    unloads = [asyncio.ensure_future(running.control.UnloadModel(unload())) for _ in range(3)]
    for _ in range(99):
        assert (await stream.read()).message
    assert await stream.read() is grpc.aio.EOF
    await asyncio.gather(*unloads)


async def test_a_request_that_cannot_be_made_fails_the_load(running: LoaderUnderTest) -> None:
    """A field that does not fit the wire format is an error of the model, not an endless load."""
    running.add_model("m", "fake", parameters={"model": "m.bin", "batch": 2**40})
    running.add_model("odd", "fake", lora_scales=["x"])
    for name in ("m", "odd"):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await running.control.LoadModel(pb.LoadModelRequest(name=name), timeout=10)
        assert from_rpc_error(failed.value).reason == "MODEL_CONFIG_INVALID"


async def test_a_model_without_a_file_can_be_unloaded(running: LoaderUnderTest) -> None:
    await running.control.LoadModel(pb.LoadModelRequest(name="m"))
    (running.models / "m.yaml").unlink()
    await running.control.UnloadModel(unload())
    assert processes_in(running.backends) == []


async def test_a_busy_model_takes_its_new_configuration_when_it_can(
    loader: LoaderUnderTest,
) -> None:
    """Not only when the folder is scanned."""
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    await loader.start("--models-interval", "100ms")

    async def loads_after_a_call() -> int:
        request = backend_pb2.PredictOptions(Tokens=30)
        async for _ in loader.data.PredictStream(request, metadata=MODEL):
            pass
        return loader.notes("fake").count("load m.bin")

    assert await loads_after_a_call() == 1
    loader.add_model("m", "fake", context_size=99)

    async def loaded_anew() -> bool:
        return await loads_after_a_call() == 2

    await eventually(loaded_anew, what="a call with the new configuration")


async def test_a_flood_is_kept_from_the_memory_and_from_the_others(
    loader: LoaderUnderTest,
) -> None:
    folder = loader.add_backend("fake")
    run = (folder / "run.sh").read_text()
    flood = "(yes | head -c 30000000; head -c 10000000 /dev/zero; echo; echo over) >&2 &\nexec "
    (folder / "run.sh").write_text(run.replace("exec ", flood))
    loader.add_model("m", "fake")
    await loader.start()
    await loader.control.LoadModel(pb.LoadModelRequest(name="m"))
    logs = loader.control.StreamLogs(pb.StreamLogsRequest(name="m", follow=True))
    async for answer in logs:
        if answer.line.text == "over":
            break
    assert psutil.Process(loader.service.pid).memory_info().rss < 200 * 1024**2


def test_sockets_of_a_killed_loader_are_removed(tmp_path: Path) -> None:
    import socket

    deep = tmp_path / ("x" * 80)
    with socket_folder(deep) as first:
        pass
    assert not first.exists() and first.parent == Path(tempfile.gettempdir())
    with socket_folder(tmp_path) as folder:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(folder / "dead.sock"))
        with socket.socket(socket.AF_UNIX) as living:
            living.bind(str(folder / "living.sock"))
            living.listen()
            with socket_folder(tmp_path) as again:
                assert [path.name for path in again.iterdir()] == ["living.sock"]


def test_no_port_is_promised_twice(tmp_path: Path) -> None:
    addresses = BackendAddresses(tmp_path)
    given = [addresses.port() for _ in range(200)]
    assert len(set(given)) == 200
    for address in given:
        addresses.give_back(address)
