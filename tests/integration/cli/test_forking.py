"""The fork server that `corral up` starts the services with."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.cli.stack.child import Child, StartFailure
from services.cli.stack.fork_client import ForkServer
from services.cli.stack.fork_server import LARGEST
from tests.tools.processes import alive
from tests.tools.waiting import eventually

MODULE = "tests.fakes.forkable"
PROGRAM = (sys.executable, "-m", MODULE)


@pytest.fixture
async def forks() -> AsyncIterator[ForkServer]:
    async with ForkServer([f"{MODULE}.__main__"], os.environ, [], timeout=20) as server:
        yield server


class Started:
    """A child process and its output."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.child = Child("loader", lambda _, line: self.lines.append(line))

    async def start(self, forks: ForkServer, *words: str, **env: str) -> Started:
        await self.child.start([*PROGRAM, *words], {**os.environ, **env}, [], forks)
        return self

    async def says(self) -> dict[str, Any]:
        await eventually(lambda: len(self.lines) >= 2, what="its two lines")
        return dict(json.loads(next(line for line in self.lines if line.startswith("{"))))

    async def ends(self) -> int:
        async with asyncio.timeout(10):
            await self.child.drained.wait()
            return await self.child.exited


async def test_it_is_a_process_like_any(forks: ForkServer, tmp_path: Path) -> None:
    started = await Started().start(forks, "wait", "--flag=a b", FORKABLE="yes", HOME=str(tmp_path))
    said = await started.says()
    pid = started.child.pid
    assert said["pid"] == said["session"] == pid != said["parent"]
    assert said["parent"] != os.getpid(), "it was started as any program, not forked"
    assert said["arguments"] == ["wait", "--flag=a b"]
    assert said["variable"] == "yes" and said["home"] == str(tmp_path)
    assert said["stdin"] == ""
    assert "to stderr" in started.lines
    process = psutil.Process(pid)
    assert " ".join(process.cmdline()) == f"{sys.executable} -m {MODULE} wait --flag=a b"
    assert process.name() == "corral-loader"
    assert await started.child.stop(10, asyncio.Event())
    assert await started.ends() == -signal.SIGTERM
    assert not alive(pid)


@pytest.mark.parametrize(("word", "code"), [("0", 0), ("7", 7), ("kill", -9), ("raise", 1)])
async def test_how_it_ends(forks: ForkServer, word: str, code: int) -> None:
    started = await Started().start(forks, word)
    assert await started.ends() == code
    assert ("RuntimeError: as told" in started.lines) == (word == "raise")


async def test_many_at_once(forks: ForkServer) -> None:
    many = [Started() for _ in range(20)]
    await asyncio.gather(*(each.start(forks, str(n)) for n, each in enumerate(many)))
    assert [await each.ends() for each in many] == list(range(20))
    assert len({(await each.says())["pid"] for each in many}) == 20


async def test_nothing_is_left_open(forks: ForkServer) -> None:
    await (await Started().start(forks, "0")).ends()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await (await Started().start(forks, "0")).ends()
    await eventually(lambda: len(os.listdir("/proc/self/fd")) == before, what="closed pipes")


async def test_whoever_leaves_leaves_no_process(forks: ForkServer) -> None:
    await (await Started().start(forks, "0")).ends()
    assert forks._process is not None
    server = psutil.Process(forks._process.pid)
    starting = asyncio.ensure_future(Started().start(forks, "wait"))
    for _ in range(100):  # until it has asked, and no longer
        if not forks._asked:
            await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await eventually(lambda: not forks._asked and not server.children(), what="its end")


async def test_when_the_fork_server_is_killed(forks: ForkServer) -> None:
    started = await Started().start(forks, "wait")
    await started.says()
    assert forks._process is not None
    forks._process.kill()
    await eventually(lambda: not forks.can(PROGRAM), what="that it is gone")
    assert alive(started.child.pid), "a service does not depend on it"
    other = await Started().start(forks, "3")
    assert (await other.says())["parent"] == os.getpid(), "it is started as any program"
    assert await other.ends() == 3
    os.kill(started.child.pid, signal.SIGKILL)
    await started.ends()


async def test_it_goes_when_nobody_wants_it() -> None:
    async with ForkServer([f"{MODULE}.__main__"], os.environ, [], timeout=20) as forks:
        assert forks._process is not None
        pid = forks._process.pid
        started = await Started().start(forks, "wait")
        await started.says()
    assert not alive(pid)
    assert alive(started.child.pid)
    os.kill(started.child.pid, signal.SIGKILL)
    await started.ends()


async def test_what_it_cannot_import_is_started_all_the_same() -> None:
    async with ForkServer(["no.such.__main__"], os.environ, [], timeout=20) as forks:
        started = await Started().start(forks, "4")
        assert await started.ends() == 4


@pytest.mark.parametrize("size", [LARGEST, 3 * LARGEST])
async def test_an_environment_too_large_for_it(forks: ForkServer, size: int) -> None:
    await (await Started().start(forks, "0")).ends()
    large = {f"LARGE_{n}": "x" * 1024 for n in range(size // 1024)}
    started = await Started().start(forks, "0", **large)
    assert (await started.says())["parent"] == os.getpid(), "it is started as any program"
    await started.ends()
    again = await Started().start(forks, "0")
    assert (await again.says())["parent"] != os.getpid(), "and others are forked as before"
    await again.ends()


async def test_one_that_does_not_answer_is_given_up() -> None:
    async with ForkServer([f"{MODULE}.__main__"], os.environ, [], timeout=3) as forks:
        await (await Started().start(forks, "0")).ends()
        assert forks._process is not None
        os.kill(forks._process.pid, signal.SIGSTOP)
        started = await Started().start(forks, "5")
        assert (await started.says())["parent"] == os.getpid(), "it is started as any program"
        assert await started.ends() == 5
        assert not alive(forks._process.pid), "it would fork it a second time"


async def test_its_client_is_killed_before_it_has_read_all() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = await asyncio.create_subprocess_exec(
        *PROGRAM[:2],
        "services.cli.stack.fork_server",
        str(theirs.fileno()),
        f"{MODULE}.__main__",
        pass_fds=(theirs.fileno(),),
        stderr=asyncio.subprocess.PIPE,
    )
    theirs.close()
    await eventually(lambda: select.select([ours], [], [], 0)[0], timeout=20, what="its ready")
    ours.close()
    async with asyncio.timeout(10):
        _, err = await server.communicate()
    assert (server.returncode, err) == (0, b"")


async def test_a_program_that_cannot_be_started_has_ended() -> None:
    child = Child("loader", lambda _, line: None)
    with pytest.raises(StartFailure, match="cannot be started"):
        await child.start(["/no/such/program"], os.environ, [])
    async with asyncio.timeout(1):
        assert await child.exited == 126
    assert await child.stop(1, asyncio.Event())
