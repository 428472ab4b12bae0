"""What the command line writes when something fails."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.services_fake import log_line
from tests.tools.corral_command import World, command_environment, corral, scripted_world
from tests.tools.service import ROOT

NOWHERE = "127.0.0.1:1"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with scripted_world(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("args", "service"),
    [
        (["models"], "loader"),
        (["models", "-a"], "gallery"),
        (["install", "x"], "gallery"),
        (["run", "x", "y"], "loader"),
        (["logs", "x", "-f"], "loader"),
        (["operations"], "gallery"),
    ],
)
async def test_an_address_where_nothing_listens(
    tmp_path: Path, args: list[str], service: str
) -> None:
    done = await corral(tmp_path, *args, CORRAL_LOADER=NOWHERE, CORRAL_GALLERY=NOWHERE)
    assert done.code == 1
    assert done.out == ""
    assert done.err.splitlines()[0] == f"error: cannot reach the {service} at {NOWHERE}"
    assert done.err.splitlines()[1].startswith("next:  ")
    assert "`corral up`" in done.err


async def test_a_value_that_cannot_be_right_is_reported_without_a_loader_too(
    tmp_path: Path,
) -> None:
    done = await corral(tmp_path, "settings", "set", "threads=four", "--loader", NOWHERE)
    assert done.code == 2
    assert "'four' is not a whole number" in done.err
    done = await corral(tmp_path, "settings", "set", "threads=4", "--loader", NOWHERE)
    assert done.code == 1 and "cannot reach the loader" in done.err


async def test_nobody_at_a_socket(tmp_path: Path) -> None:
    done = await corral(tmp_path, "models", "--loader", f"unix:{tmp_path}/none.sock")
    assert "cannot reach the loader at unix:" in done.err


async def test_failures_are_json_too(tmp_path: Path) -> None:
    done = await corral(tmp_path, "models", "--json", "--loader", NOWHERE)
    assert done.out == ""
    error = json.loads(done.err)["error"]
    assert error["reason"] == "SERVICE_UNREACHABLE"
    assert error["hint"]


@pytest.mark.parametrize(
    "args",
    [
        ["run"],
        ["run", "m"],
        ["run", "m", "x", "--raw", "--system", "y"],
        ["run", "m", "x", "--temperature", "-1"],
        ["load", "m", "--timeout", "soon"],
        ["models", "--loader", "nowhere"],
        ["frobnicate"],
        ["models", "--frobnicate"],
        ["up", "--listen", "x"],
    ],
)
async def test_wrong_usage(tmp_path: Path, args: list[str]) -> None:
    done = await corral(tmp_path, *args)
    assert done.code == 2
    assert done.out == ""


async def test_another_server_at_the_address(world: World) -> None:
    done = await world.run("models", "--loader", world.addresses["metrics"])
    assert done.code == 1
    assert "is it the right service?" in done.err


async def test_a_reader_that_goes_away_is_no_news(world: World) -> None:
    world.loader.add("m")
    world.loader.lines = [log_line(n, "x" * 1000) for n in range(1, 2000)]
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.cli", "logs", "m"),
        cwd=ROOT,
        env=command_environment(world.home, **world.env()),
        stdout=write,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(write)
    await asyncio.to_thread(os.read, read, 100)
    os.close(read)
    async with asyncio.timeout(20):
        _, err = await process.communicate()
    assert err == b""
    assert process.returncode == 1
