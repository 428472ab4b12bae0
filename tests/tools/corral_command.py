"""The `corral` command as a real process, and its results."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.gallery_fake import FakeGallery
from tests.fakes.services_fake import FakeLoader, FakeMonitor, serving
from tests.tools.service import ROOT, environment


def command_environment(home: Path, **more: str) -> dict[str, str]:
    """Return a command's environment, with a known home and screen width."""
    return environment(**{"CORRAL_HOME": str(home), "COLUMNS": "120", **more})


@dataclass
class Done:
    """The results of a `corral` process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@asynccontextmanager
async def started(
    home: Path, *args: str, stdin: int = asyncio.subprocess.DEVNULL, **extra: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a command; kill it at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.cli",
        *args,
        cwd=ROOT,
        env=command_environment(home, **extra),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def corral(home: Path, *args: str, stdin: str | None = None, **extra: str) -> Done:
    """Run a command to completion."""
    pipe = asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE
    async with started(home, *args, stdin=pipe, **extra) as process, asyncio.timeout(30):
        out, err = await process.communicate(None if stdin is None else stdin.encode())
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Done(process.returncode, out.decode(), err.decode())


class World:
    """Scripted services, and commands that get their addresses."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.loader = FakeLoader()
        self.gallery = FakeGallery()
        self.addresses: dict[str, str] = {}

    async def run(self, *args: str, stdin: str | None = None, **extra: str) -> Any:
        return await corral(self.home, *args, stdin=stdin, **self.env(), **extra)

    def env(self) -> dict[str, Any]:
        return {f"CORRAL_{name.upper()}": text for name, text in self.addresses.items()}


@asynccontextmanager
async def scripted_world(home: Path) -> AsyncIterator[World]:
    """Serve a world of scripted services, each at its own address."""
    world = World(home)
    async with (
        serving(world.loader) as loader,
        serving(world.gallery) as gallery,
        serving(FakeMonitor()) as monitor,
        serving() as metrics,
    ):
        world.addresses = {
            "loader": loader,
            "gallery": gallery,
            "monitor": monitor,
            "metrics": metrics,
        }
        yield world
