"""A new user's tour, with the real services and a real backend: up, install, run, stop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from services.cli.client import addresses
from tests.tools.corral_command import Done, command_environment, corral
from tests.tools.processes import alive, descendants
from tests.tools.service import ROOT
from tests.tools.tiny_gguf import write_tiny
from tests.tools.waiting import eventually


class Installation:
    """A home with a gallery that offers one tiny model, and a running `corral up`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        shop = home / "shop"
        shop.mkdir(parents=True)
        weights = write_tiny("count", shop / "count.gguf")
        entry = {
            "name": "count",
            "description": "Counts in words.",
            "overrides": {
                "backend": "llama-cpp",
                "parameters": {"model": "count.gguf"},
                "known_usecases": ["completion"],
            },
            "files": [
                {
                    "filename": "count.gguf",
                    "uri": weights.as_uri(),
                    "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
                }
            ],
        }
        (shop / "index.yaml").write_text(yaml.safe_dump([entry]))
        galleries = [{"name": "shop", "url": (shop / "index.yaml").as_uri()}]
        self.env = {
            "CORRAL_GALLERY_GALLERIES": json.dumps(galleries),
            "CORRAL_GALLERY_BUILT_IN_GALLERY": "false",
        }
        self.process: asyncio.subprocess.Process

    async def up(self) -> dict[str, Any]:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.cli", "up", "--listen", "127.0.0.1:0", "--json"),
            *("--backends-path", str(ROOT / "backends")),
            cwd=ROOT,
            env=command_environment(self.home, **self.env),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        async with asyncio.timeout(40):
            line = await self.process.stdout.readline()
        assert line, (await self.process.communicate())[1].decode()
        return dict(json.loads(line))

    async def run(self, *args: str, **more: Any) -> Done:
        return await corral(self.home, *args, **more)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def service(self, name: str) -> psutil.Process:
        return descendants(self.process.pid, f"services.{name}")[0]


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    made = Installation(tmp_path / "home")
    yield made
    if made.process.returncode is None:
        family = made.family()
        made.process.kill()
        await made.process.communicate()
        await _gone(family)


async def _gone(family: list[psutil.Process]) -> None:
    await eventually(
        lambda: not any(map(alive, family)), timeout=15, what="the end of all processes"
    )


async def test_the_tour(installation: Installation) -> None:
    ready = await installation.up()
    assert ready["prometheus"].endswith("/metrics")
    run = installation.run

    [offer] = (await run("models", "--available", "--json")).json["models"]
    assert (offer["name"], offer["installed"]) == ("count", False)
    installed = await run("install", "count")
    assert installed.code == 0, installed.err
    assert installed.out.startswith("installed count (")
    assert "shop@count" in (await run("models", "--installed")).out

    async def listed() -> bool:
        return "count" in (await run("models")).out

    await eventually(listed, timeout=30, what="the installed model in the loader's list")

    asked = ("--raw", "one two three", "--temperature", "0", "--max-tokens", "4")
    answer = await run("run", "count", *asked, "--stats")
    assert answer.code == 0, answer.err
    assert answer.out.split() == ["four", "five", "six", "seven"]
    assert "loading count" in answer.err
    assert "4 tokens in" in answer.err
    *_, last = (await run("run", "count", *asked, "--json")).lines
    assert last["tokens"] == 4

    [model] = (await run("status", "--json")).json["models"]
    assert (model["name"], model["state"]) == ("count", "ready")
    assert model["status"]["memory_bytes"] > 1_000_000
    assert "starting llama-cpp" in (await run("logs", "count")).out
    assert (await run("unload", "count")).code == 0

    family = installation.family()
    installation.process.terminate()
    async with asyncio.timeout(30):
        _, err = await installation.process.communicate()
    assert installation.process.returncode == 0, err.decode()
    assert err.endswith(b"corral  | stopped\n")
    await _gone(family)
    assert addresses.read(addresses.addresses_file(installation.home)) is None


async def test_whatever_is_killed_comes_back_or_goes_with_the_rest(
    installation: Installation,
) -> None:
    await installation.up()
    assert (await installation.run("install", "count")).code == 0
    ask = ("run", "count", "--raw", "one two", "--temperature", "0", "--max-tokens", "2")

    async def answers() -> bool:
        return (await installation.run(*ask)).out.split() == ["three", "four"]

    await eventually(answers, timeout=30, what="an answer")
    loader = installation.service("loader")
    os.kill(loader.pid, signal.SIGKILL)
    await eventually(answers, timeout=30, what="an answer after the loader was killed")
    assert installation.service("loader").pid != loader.pid

    family = installation.family()
    assert len(family) >= 5
    installation.process.kill()
    await installation.process.communicate()
    await _gone(family)
