"""`corral status` as a real process against small servers."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from corral.loader.v1 import loader_pb2
from tests.fakes.services_fake import STATE, FakeLoader, serving
from tests.tools.corral_command import World, corral, scripted_world, started

NOWHERE = "127.0.0.1:1"
GIB = 2**30
RESERVED = loader_pb2.MemoryReservation


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with scripted_world(tmp_path) as made:
        yield made


async def test_status_of_everything(world: World) -> None:
    world.loader.add("idle")
    world.loader.add("m", STATE.STATE_READY)
    done = await world.run("status", "--json")
    assert done.code == 0
    assert {name: s["health"] for name, s in done.json["services"].items()} == dict.fromkeys(
        ("loader", "gallery", "monitor", "metrics"), "serving"
    )
    [model] = done.json["models"]
    assert model["name"] == "m"
    assert model["status"]["memory_bytes"] == 200 * 1024 * 1024
    assert model["status"]["process"]["cpu_percent"] == 12.0
    table = await world.run("status")
    assert "200 MiB" in table.out
    assert "idle" not in table.out
    assert "idle   unloaded" in (await world.run("status", "--all")).out


async def test_why_each_model_stands_where_it_does(world: World) -> None:
    add = world.loader.add
    busy = add("busy", STATE.STATE_READY, pinned=True, max_concurrent_calls=4, queued_calls=3)
    busy.instances[0].active_calls = 2
    broken = add("broken", STATE.STATE_BACKOFF, state_message="exit code 3", crash_count=3)
    broken.retry_time.GetCurrentTime()
    broken.retry_time.seconds += 90
    add(
        "next",
        STATE.STATE_WAITING,
        memory=[RESERVED(device="gpu0", bytes=GIB, basis=RESERVED.BASIS_ESTIMATED)],
    )
    world.loader.capacity.waiting.add(model="models/next", position=2, explanation="room on gpu0")
    gone = loader_pb2.Unload(
        cause=loader_pb2.Unload.CAUSE_EVICTED, message="idle the longest", for_model="models/next"
    )
    add("gone", last_unload=gone)
    done = await world.run("status", "--all")
    rows = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    assert "2/4 +3" in rows["busy"]
    assert rows["busy"].endswith("pinned · answers 2 calls")
    assert "3 crashes in a row · next try in 1 min" in rows["broken"]
    assert rows["broken"].endswith(": exit code 3")
    assert "1.0 GiB on gpu0 (estimated)" in rows["next"]
    assert rows["next"].endswith("place 2: room on gpu0")
    assert rows["gone"].endswith("idle the longest (for next)")


async def test_the_head_says_what_there_is_to_give(world: World) -> None:
    capacity = world.loader.capacity
    capacity.active_models, capacity.max_active_models = 2, 4
    capacity.loads, capacity.max_loads, capacity.calls = 1, 2, 5
    capacity.devices.add(
        name="ram",
        description="main memory",
        total_bytes=16 * GIB,
        available_bytes=8 * GIB,
        reserved_bytes=4 * GIB,
        budget_bytes=12 * GIB,
    )
    done = await world.run("status")
    assert "capacity: models 2/4, loads 1/2, calls 5\n" in done.out
    assert (
        "ram  █████▒▒▒▒▒░░░░░░░░░░  8.0 GiB of 16.0 GiB used, models 4.0 GiB of 12.0 GiB"
        "  main memory\n" in done.out
    )
    assert (await world.run("status", "--json")).json["capacity"]["devices"][0]["name"] == "ram"
    plain = await world.run("status", PYTHONIOENCODING="ascii")
    assert "ram  #####=====----------" in plain.out


async def test_a_narrow_terminal_shows_what_matters_most(world: World) -> None:
    world.loader.add("smollm2-135m-instruct", STATE.STATE_READY, pinned=True)
    narrow = await world.run("status", FORCE_COLOR="1", NO_COLOR="1", COLUMNS="50", TERM="xterm")
    assert "STATE" in narrow.out
    assert "pinned" in narrow.out
    assert "BACKEND" not in narrow.out
    wide = await world.run("status", FORCE_COLOR="1", NO_COLOR="1", COLUMNS="150", TERM="xterm")
    assert "BACKEND" in wide.out


async def test_status_of_one_model(world: World) -> None:
    world.loader.add("m", STATE.STATE_READY, model_file="m.gguf")
    done = await world.run("status", "m")
    lines = [line.split(maxsplit=1) for line in done.out.splitlines()]
    assert ["state", "ready"] in lines
    assert ["file", "m.gguf"] in lines
    assert ["health", "serving"] in lines
    assert ["memory", "200 MiB reported by the backend"] in lines


async def test_the_whole_picture_of_a_model_in_trouble(world: World) -> None:
    model = world.loader.add(
        "m",
        STATE.STATE_BACKOFF,
        concurrency_groups=["big", "gpu"],
        memory=[RESERVED(device="ram", bytes=GIB, basis=RESERVED.BASIS_LEARNED)],
        last_unload=loader_pb2.Unload(cause=loader_pb2.Unload.CAUSE_CRASHED, forced=True),
    )
    failed = model.failures.add(backend="llama-cpp", message="exit code 3", count=2)
    failed.retry_time.GetCurrentTime()
    failed.retry_time.seconds += 7200
    world.loader.options = [
        loader_pb2.EffectiveOption(
            field="ContextSize",
            value="4096",
            source=loader_pb2.EffectiveOption.SOURCE_MODEL_FILE,
            detail="trained for 8192",
        )
    ]
    done = await world.run("status", "m", "--options")
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines() if line)
    assert lines["groups"] == "big, gpu"
    assert lines["memory"] == "1.0 GiB on ram (learned)"
    assert lines["failed"].startswith("llama-cpp: exit code 3 (2 times); next try in ")
    assert lines["last"] == "unload  crashed, calls were cut"
    assert lines["ContextSize"].split(maxsplit=3) == ["4096", "model", "file", "trained for 8192"]
    shown = (await world.run("status", "m", "--json")).json
    assert shown["effective_options"][0]["value"] == 4096
    assert shown["failures"][0]["count"] == 2
    assert "4096" not in (await world.run("status", "m")).out


async def test_options_go_with_a_model(world: World) -> None:
    assert (await world.run("status", "--options")).code == 2


async def test_status_fails_if_a_named_service_does_not_serve(world: World) -> None:
    done = await world.run("status", "--gallery", NOWHERE)
    assert done.code == 1
    assert "gallery  unreachable  127.0.0.1:1" in done.out


async def test_a_loader_that_was_drained_does_not_serve(world: World) -> None:
    async with serving(world.loader, not_serving=["corral.loader.v1.LoaderService"]) as drained:
        done = await world.run("status", "--loader", drained)
    assert done.code == 1
    assert f"loader   not serving  {drained}" in done.out


async def test_status_without_any_service(tmp_path: Path) -> None:
    flags = [f"--{name}={NOWHERE}" for name in ("loader", "gallery", "monitor", "metrics")]
    done = await corral(tmp_path, "status", *flags)
    assert done.code == 1
    assert done.err.startswith("error: no service answers\nnext:  start them with `corral up`")


async def line_with(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        while line := (await process.stdout.readline()).decode():
            if text in line:
                return line
    raise AssertionError(f"it ended before {text!r}")


async def text_with(process: asyncio.subprocess.Process, text: str) -> None:
    """Read until the text appears; on a screen it need not end its line."""
    assert process.stdout is not None
    seen = b""
    async with asyncio.timeout(20):
        while text.encode() not in seen:
            piece = await process.stdout.read(4096)
            assert piece, seen.decode()
            seen += piece


async def test_changes_are_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    loader = FakeLoader()
    loader.add("m", STATE.STATE_READY)
    loader.add("lying")
    async with AsyncExitStack() as stack:
        async with serving(loader) as address:
            process = await stack.enter_async_context(
                started(tmp_path, "status", "--watch", CORRAL_LOADER=address)
            )
            assert (await line_with(process, "m")).split()[1:] == ["m", "ready"]
            loader.become("m", STATE.STATE_FAILED, state_message="exit code 3")
            assert (await line_with(process, "fail")).split(maxsplit=3)[2:] == [
                "failed",
                "exit code 3\n",
            ]
            loader.become("lying", STATE.STATE_LOADING)
            await line_with(process, "lying  loading")
        # It continues once the loader is back.
        loader = FakeLoader()
        loader.add("m", STATE.STATE_READY)
        async with serving(loader, address=address):
            await line_with(process, "m  ready")
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(10):
                assert await process.wait() == 130


async def test_changes_of_one_model_as_json(world: World) -> None:
    world.loader.add("m", STATE.STATE_READY)
    world.loader.add("m2", STATE.STATE_READY)
    async with started(world.home, "status", "m", "-w", "--json", **world.env()) as process:
        first = json.loads(await line_with(process, "{"))
        assert (first["type"], first["model"]["name"]) == ("snapshot", "m")
        world.loader.become("m2", STATE.STATE_FAILED)
        del world.loader.models["m"]
        world.loader.changed("m")
        second = json.loads(await line_with(process, "{"))
        assert (second["type"], second["model"]["name"]) == ("removed", "m")


async def test_a_terminal_is_drawn_anew(world: World) -> None:
    world.loader.add("m", STATE.STATE_READY)
    screen: dict[str, Any] = {
        "FORCE_COLOR": "1",
        "NO_COLOR": "1",
        "TERM": "xterm",
        "TTY_COMPATIBLE": "1",
    }
    async with started(world.home, "status", "--watch", **world.env(), **screen) as process:
        await text_with(process, "ready  llama-cpp")
        world.loader.become("m", STATE.STATE_FAILED, state_message="exit code 3")
        await text_with(process, "exit code 3")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            assert await process.wait() == 130
