"""Backends that outlive their loader: adopted by the next one, or stopped if none comes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from corral.loader.v1 import loader_pb2 as pb
from services.common.rpc.status import from_rpc_error
from tests.tools.loader_calls import FOREVER, MODEL, backends_running, load, prompt
from tests.tools.processes import command, descendants
from tests.tools.running import LoaderUnderTest, alive, eventually, processes_in

TICKING = "(while sleep 0.02; do echo tick; echo tock >&2; done) &\nexec "


@pytest.fixture
async def loader(loader: LoaderUnderTest) -> AsyncIterator[LoaderUnderTest]:
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    before = {process.pid for process in guards()}
    yield loader
    await loader.close()
    for guard in guards():
        if guard.pid not in before:
            guard.kill()


def guards() -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if "loader/processes/guard.py" in command(p)]


async def kill(loader: LoaderUnderTest) -> None:
    loader.service.kill()
    await loader.service.process.wait()
    await loader.service.process.communicate()
    await loader.channel.close()


async def instance(loader: LoaderUnderTest, name: str = "m") -> pb.Instance:
    model = (await loader.control.GetModel(pb.GetModelRequest(name=f"models/{name}"))).model
    assert model.state == pb.Model.STATE_READY, model
    found: pb.Instance = model.instances[0]
    return found


async def state(loader: LoaderUnderTest) -> Any:
    return (await loader.control.GetModel(pb.GetModelRequest(name="models/m"))).model.state


async def test_a_killed_loaders_backend_is_taken_over(loader: LoaderUnderTest) -> None:
    run = loader.backends / "fake" / "run.sh"
    run.write_text(run.read_text().replace("exec ", TICKING))
    await loader.start("--adoption", "crash")
    old = (await loader.control.LoadModel(load())).model.instances[0]
    (guard,) = descendants(loader.service.pid, "guard.py")
    await kill(loader)
    for last in (False, True):  # a loader that adopted a backend can be succeeded like any other
        await loader.start("--adoption", "crash")
        new = await instance(loader)
        assert (new.pid, new.uid, new.address) == (old.pid, old.uid, old.address)
        assert new.adopted and not old.adopted and new.generation == 1
        assert new.ready_time == old.ready_time and new.load_message == old.load_message
        assert not alive(guard.pid)
        assert [p.pid for p in descendants(loader.service.pid, "guard.py")]
        await loader.data.Predict(prompt("x"), metadata=MODEL)
        logs = loader.control.StreamLogs(pb.StreamLogsRequest(name="m", follow=True))
        seen: set[str] = set()
        while not seen >= {"tick", "tock"}:
            seen.add((await asyncio.wait_for(logs.read(), 5)).line.text)
        logs.cancel()
        if not last:
            await kill(loader)
            assert alive(old.pid)
    assert loader.notes("fake") == ["load m.bin"]
    await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"))
    assert processes_in(loader.backends) == []
    assert left_behind(loader) == []


def left_behind(loader: LoaderUnderTest) -> list[str]:
    state = loader.home / "state" / "loader"
    return [p.name for name in ("instances", "pipes") for p in (state / name).iterdir()]


async def test_the_end_of_an_adopted_backend_is_seen_at_once(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", escapee=True, children=1)
    await loader.start("--adoption", "crash")
    await loader.control.LoadModel(load())
    await kill(loader)
    await loader.start("--adoption", "crash")
    pid = (await instance(loader)).pid
    stream = loader.data.PredictStream(FOREVER, metadata=MODEL)
    await stream.read()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(grpc.aio.AioRpcError) as cut:
        while True:
            await asyncio.wait_for(stream.read(), 5)
    error = from_rpc_error(cut.value)
    assert error.reason == "BACKEND_CRASHED" and "exit code is unknown" in str(error)
    await loader.data.Predict(prompt("x"), metadata=MODEL)
    assert (await instance(loader)).pid != pid and not (await instance(loader)).adopted
    assert backends_running(loader) == 1


@pytest.mark.parametrize("exec_", [True, False])
async def test_an_adopted_backend_ends_whole(loader: LoaderUnderTest, exec_: bool) -> None:
    loader.add_backend("fake", exec_=exec_, escapee=True, children=1, sigterm_seconds=0.1)
    await loader.start("--adoption", "crash")
    await loader.control.LoadModel(load())
    await kill(loader)
    await loader.start("--adoption", "crash")
    assert (await instance(loader)).adopted
    await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"))
    assert processes_in(loader.backends) == []
    assert loader.notes("fake")[-2:] == ["free", "ended in peace"]


async def test_nobody_comes_and_they_end(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", escapee=True, ignore_sigterm=True)
    await loader.start("--adoption", "crash", "--adoption-timeout", "700ms")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    (guard,) = descendants(loader.service.pid, "guard.py")
    await kill(loader)
    assert alive(pid)
    await eventually(lambda: not processes_in(loader.backends), timeout=3, what="their end")
    await eventually(lambda: not alive(guard.pid), timeout=3, what="the guard's end")


async def test_what_is_not_ready_ends_with_the_loader(loader: LoaderUnderTest) -> None:
    loader.add_backend("slow", load="hang", escapee=True)
    loader.add_model("slow", "slow")
    await loader.start("--adoption", "crash")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    loading = asyncio.ensure_future(loader.control.LoadModel(load("slow")))
    await eventually(lambda: loader.notes("slow"), what="LoadModel at the slow backend")
    await kill(loader)
    await asyncio.gather(loading, return_exceptions=True)
    await eventually(
        lambda: not processes_in(loader.backends / "slow"), timeout=2, what="the slow one's end"
    )
    assert alive(pid)
    await loader.start("--adoption", "crash")
    assert (await instance(loader)).pid == pid
    assert backends_running(loader) == 1


async def test_a_loader_killed_while_it_adopts(loader: LoaderUnderTest) -> None:
    await loader.start("--adoption", "crash")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    (first,) = descendants(loader.service.pid, "guard.py")
    await kill(loader)
    os.kill(pid, signal.SIGSTOP)  # so that Health gets no answer and the adoption takes long
    starting = asyncio.ensure_future(
        loader.start("--adoption", "crash", "--adoption-timeout", "700ms")
    )
    await eventually(lambda: not alive(first.pid), what="the handing over")
    (second,) = psutil.Process().children()[-1:]
    assert "services.loader" in command(second) and alive(pid)
    second.kill()
    with pytest.raises(AssertionError):
        await starting
    await eventually(lambda: not processes_in(loader.backends), timeout=4, what="its end")


async def test_a_backend_that_does_not_answer_is_ended(loader: LoaderUnderTest) -> None:
    await loader.start("--adoption", "crash")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    await kill(loader)
    os.kill(pid, signal.SIGSTOP)
    await loader.start("--adoption", "crash", "--health-timeout", "300ms")
    assert not alive(pid) and await state(loader) == pb.Model.STATE_UNLOADED
    assert "does not answer Health" in loader.service.log.read_text()
    await loader.data.Predict(prompt("x"), metadata=MODEL)


@pytest.mark.parametrize("what", ["model", "backend"])
async def test_what_changed_meanwhile_is_loaded_anew(loader: LoaderUnderTest, what: str) -> None:
    await loader.start("--adoption", "crash")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    await kill(loader)
    if what == "model":
        loader.add_model("m", "fake", context_size=99)
    else:
        os.utime(loader.backends / "fake" / "run.sh", (1, 1))
    await loader.start("--adoption", "crash")
    await loader.data.Predict(prompt("x"), metadata=MODEL)
    new = await instance(loader)
    assert new.pid != pid and not new.adopted and not alive(pid)


async def test_the_backend_of_a_model_that_is_gone_is_ended(loader: LoaderUnderTest) -> None:
    await loader.start("--adoption", "crash")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    await kill(loader)
    (loader.models / "m.yaml").unlink()
    await loader.start("--adoption", "crash")
    assert not alive(pid) and left_behind(loader) == []


async def test_a_stop_leaves_ready_models_only_if_it_may(loader: LoaderUnderTest) -> None:
    loader.add_backend("slow", load="hang")
    loader.add_model("slow", "slow")
    await loader.start("--adoption", "restart", "--grace", "200ms")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    await loader.control.LoadModel(load("slow", return_immediately=True))
    await eventually(lambda: loader.notes("slow"), what="LoadModel at the slow backend")
    assert await loader.service.stop(timeout=5) == 0
    await loader.channel.close()
    assert processes_in(loader.backends / "slow") == [] and alive(pid)
    await loader.start("--adoption", "crash")
    assert (await instance(loader)).pid == pid
    assert loader.notes("fake") == ["load m.bin"]
    assert await loader.service.stop(timeout=5) == 0
    assert processes_in(loader.backends) == [] and left_behind(loader) == []


async def test_adoption_that_is_off_by_now_ends_them(loader: LoaderUnderTest) -> None:
    await loader.start("--adoption", "crash")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    await kill(loader)
    await loader.start()
    assert not alive(pid) and left_behind(loader) == []


async def test_a_flood_waits_for_its_reader(loader: LoaderUnderTest) -> None:
    """More output than a pipe holds, with no reader: nothing is lost or written to disk."""
    go = loader.home / "go"
    run = loader.backends / "fake" / "run.sh"
    flood = f"(while ! [ -e {go} ]; do sleep 0.02; done; seq 20000; echo over; sleep 60) &\nexec "
    run.write_text(run.read_text().replace("exec ", flood))
    await loader.start("--adoption", "crash")
    await loader.control.LoadModel(load())
    await kill(loader)
    go.touch()
    await loader.start("--adoption", "crash", "--log-lines", "30000")
    logs = loader.control.StreamLogs(pb.StreamLogsRequest(name="m", follow=True))
    numbers = []
    while (line := (await asyncio.wait_for(logs.read(), 10)).line).text != "over":
        with suppress(ValueError):
            numbers.append(int(line.text))
    assert numbers == list(range(1, 20001))
    assert size_of(loader.home / "state") < 10_000


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
