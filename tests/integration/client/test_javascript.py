"""The JavaScript of docs/direct.md, unchanged, with a real loader."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.callers import node
from benchmarks.peers.environment import UnavailableError
from tests.tools.direct_clients import READY, has_leases
from tests.tools.loader_calls import unload
from tests.tools.running import LoaderUnderTest
from tests.tools.service import ROOT, environment


@asynccontextmanager
async def javascript(
    running: LoaderUnderTest, folder: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the program from the documentation."""
    try:
        modules = await node.modules()
    except UnavailableError as error:
        pytest.skip(str(error))
    (code,) = re.findall(r"```js\n(.*?)```", (ROOT / "docs" / "direct.md").read_text(), re.DOTALL)
    file = folder / "hold.js"
    file.write_text(code)
    process = await asyncio.create_subprocess_exec(
        *("node", str(file), running.service.address, "m"),
        cwd=ROOT,
        env=environment(NODE_PATH=str(modules)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_it_holds_calls_and_lets_go(running: LoaderUnderTest, tmp_path: Path) -> None:
    async with javascript(running, tmp_path) as process:
        out, errors = await asyncio.wait_for(process.communicate(), READY)
        assert (process.returncode, errors) == (0, b"")
        assert out.split() == [str(number).encode() for number in range(50)]
    await has_leases(running, 0)


async def test_killed_it_holds_nothing(running: LoaderUnderTest, tmp_path: Path) -> None:
    running.behave("fake", token_seconds=1.0)
    async with javascript(running, tmp_path) as process:
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.read(1), READY)
        await has_leases(running, 1)
        process.kill()
        await has_leases(running, 0)
    await running.control.UnloadModel(unload())


async def test_it_moves_when_it_is_told_to(running: LoaderUnderTest, tmp_path: Path) -> None:
    running.behave("fake", token_seconds=0.02)
    async with javascript(running, tmp_path) as process:
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.read(1), READY)
        await running.control.UnloadModel(unload())
        out, errors = await asyncio.wait_for(process.communicate(), READY)
        assert (process.returncode, errors) == (0, b"") and out.endswith(b"49 ")
