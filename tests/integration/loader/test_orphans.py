"""What a starting loader finds: earlier loaders' orphans, other loaders, unrelated processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.loader.processes.lookup import birth
from services.loader.processes.registry import ProcessRecord, ProcessRegistry
from tests.tools.loader_calls import backends_running, load
from tests.tools.processes import SLEEPER, children, descendants
from tests.tools.running import LoaderUnderTest, alive, eventually, processes_in


@pytest.fixture
async def loader(loader: LoaderUnderTest) -> LoaderUnderTest:
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    return loader


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    """A process group that is not Corral's."""
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    yield process
    process.kill()
    process.wait()


async def kill_with_guard(loader: LoaderUnderTest) -> None:
    """SIGKILL a loader and its guard, so that no process stops its backends."""
    (guard,) = descendants(loader.service.pid, "guard.py")
    os.kill(loader.service.pid, signal.SIGSTOP)  # it would start another guard
    guard.kill()
    loader.service.kill()
    await loader.service.process.wait()
    await loader.service.process.communicate()
    await loader.channel.close()


def record(loader: LoaderUnderTest, **fields: Any) -> ProcessRecord:
    """Put a record into the state folder as if an earlier loader had left it."""
    registry = ProcessRegistry(loader.home / "state" / "loader", uuid.uuid4().hex)
    registry.open()
    made = ProcessRecord(
        **{
            "uid": uuid.uuid4().hex,
            "loader": registry.loader,
            "model": "m",
            "model_revision": "1",
            "backend": "fake",
            "backend_revision": "1",
            "run_file": "/none",
            "address": "127.0.0.1:1",
            "token": "t",
            "generation": 1,
            "started": 1.0,
            "ready": 2.0,
            "load_message": "",
            "adoptable": True,
            **fields,
        }
    )
    assert registry.write(made)
    return made


def records(loader: LoaderUnderTest) -> list[Path]:
    return list((loader.home / "state" / "loader" / "instances").iterdir())


@pytest.mark.parametrize("exec_", [True, False])
async def test_orphans_are_ended_at_the_next_start(loader: LoaderUnderTest, exec_: bool) -> None:
    loader.add_backend("fake", exec_=exec_, children=1, escapee=True, ignore_sigterm=True)
    await loader.start()
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    await kill_with_guard(loader)
    assert len(processes_in(loader.backends)) >= 3
    if not exec_:
        os.kill(pid, signal.SIGKILL)  # the group's leader is gone, as when a shell ends first
    await loader.start()
    assert processes_in(loader.backends) == [] and records(loader) == []
    loader.behave("fake")
    await loader.control.LoadModel(load())
    assert len(list((loader.home / "state" / "loader" / "loaders").iterdir())) == 1


async def test_an_orphan_that_nobody_recorded_is_found_by_its_marker(
    loader: LoaderUnderTest,
) -> None:
    await loader.start()
    await loader.control.LoadModel(load())
    await kill_with_guard(loader)
    for path in records(loader):
        path.unlink()
    await loader.start()
    assert processes_in(loader.backends) == []


@pytest.mark.parametrize("adoption", ["off", "crash"])
@pytest.mark.parametrize("what", ["reused", "unmarked", "other-boot"])
async def test_a_pid_that_is_somebody_elses_is_left_alone(
    loader: LoaderUnderTest, innocent: subprocess.Popen[bytes], what: str, adoption: str
) -> None:
    boot, start = birth(innocent.pid).split("/")
    born = {
        "reused": f"{boot}/{int(start) - 1}",
        "unmarked": f"{boot}/{start}",
        "other-boot": f"{uuid.uuid4()}/{start}",
    }[what]
    made = record(loader, pid=innocent.pid, birth=born)
    pipes = loader.home / "state" / "loader" / "pipes"
    pipes.mkdir()
    for stream in ("stdout", "stderr"):
        os.mkfifo(pipes / f"{made.uid}.{stream}")
    await loader.start("--adoption", adoption)
    assert records(loader) == [] and list(pipes.iterdir()) == []
    loader.service.kill()
    await loader.service.process.wait()
    await eventually(lambda: not children(loader.service.pid), what="the guard's end")
    assert innocent.poll() is None


async def test_a_group_of_somebody_else_is_left_alone_when_an_escapee_is_ended(
    loader: LoaderUnderTest, innocent: subprocess.Popen[bytes]
) -> None:
    """The record's pid was reused, but helpers of the backend still run, with its marker."""
    made = record(loader, pid=innocent.pid, birth="boot/1")
    helper = subprocess.Popen(  # noqa: ASYNC220
        SLEEPER, start_new_session=True, env={**os.environ, "CORRAL_INSTANCE": made.uid}
    )
    await loader.start()
    assert helper.wait(5) == -signal.SIGKILL
    assert innocent.poll() is None


async def test_two_loaders_with_one_state_folder(loader: LoaderUnderTest) -> None:
    await loader.start("--adoption", "crash")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    second = LoaderUnderTest(loader.home / "second")
    with pytest.raises(AssertionError) as failed:
        await second.start("--state-path", str(loader.home / "state"))
    said = "".join(failed.value.__notes__)
    assert f"another loader (process {loader.service.pid}) uses the state folder" in said
    assert "--state-path" in said
    assert alive(pid) and backends_running(loader) == 1
    await loader.control.LoadModel(load())


async def test_a_new_guard_knows_whom_to_leave(loader: LoaderUnderTest) -> None:
    await loader.start("--adoption", "crash")
    pid = (await loader.control.LoadModel(load())).model.instances[0].pid
    (guard,) = descendants(loader.service.pid, "guard.py")
    guard.kill()

    def replaced() -> list[int]:
        return [p.pid for p in descendants(loader.service.pid, "guard.py") if p.pid != guard.pid]

    (newer,) = await eventually(replaced, what="a new guard")
    loader.service.kill()
    await loader.service.process.wait()
    await loader.channel.close()
    await loader.start("--adoption", "crash")
    assert alive(pid) and not alive(newer)
    await asyncio.wait_for(loader.control.LoadModel(load()), 5)
    assert loader.notes("fake") == ["load m.bin"]
