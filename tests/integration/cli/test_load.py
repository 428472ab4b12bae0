"""`corral load` and `corral unload` as real processes against small servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corral.gallery.v1 import gallery_pb2
from corral.loader.v1 import loader_pb2
from services.common import errors
from tests.fakes.services_fake import STATE, log_line
from tests.tools.corral_command import World, scripted_world

LOAD = (STATE.STATE_WAITING, STATE.STATE_STARTING, STATE.STATE_LOADING)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with scripted_world(tmp_path) as made:
        yield made


async def test_load_and_unload(world: World) -> None:
    world.loader.add("m")
    world.loader.load_seconds = 0.5
    done = await world.run("load", "m")
    assert done.out.startswith("m is ready on llama-cpp, after ")
    assert done.out.endswith(", with 1.0 GiB\n")
    assert "loading m: starting its backend (after " in done.err
    assert "loading m: loading (after " in done.err
    again = await world.run("load", "m")
    assert again.out == "m is ready on llama-cpp already\n"
    gone = await world.run("unload", "m", "--json")
    assert (gone.json["name"], gone.json["state"]) == ("m", "unloaded")
    assert (await world.run("unload", "m")).out == "m was not loaded\n"


async def test_a_load_tells_what_it_waits_for_and_who_makes_room(world: World) -> None:
    world.loader.add("m")
    world.loader.add("größe", STATE.STATE_READY)
    world.loader.add("other", STATE.STATE_READY)
    world.loader.load_states, world.loader.load_seconds = LOAD, 0.6
    world.loader.evicts = "größe"
    world.loader.capacity.waiting.add(model="models/m", position=2, explanation="room on gpu0")
    done = await world.run("load", "m")
    assert done.code == 0
    assert "loading m: waiting, place 2: room on gpu0" in done.err
    assert "größe made room: idle the longest" in done.err
    assert "other" not in done.err


async def test_a_load_that_is_not_waited_for(world: World) -> None:
    world.loader.add("m")
    done = await world.run("load", "m", "--no-wait", "--now")
    assert done.out == "m is starting\n"
    assert "`corral status m --watch`" in done.err
    [asked] = [r for r in world.loader.requests if isinstance(r, loader_pb2.LoadModelRequest)]
    assert asked.return_immediately
    assert asked.reset_backoff
    assert (await world.run("load", "m", "--no-wait", "--json")).json["state"] == "starting"


async def test_a_load_that_fails_says_where_to_look(world: World) -> None:
    world.loader.add("m")
    world.loader.load_error = errors.ModelLoadError("the backend said: bad magic")
    done = await world.run("load", "m")
    assert done.code == 1
    assert done.err.splitlines()[-2:] == [
        "error: the backend said: bad magic",
        "next:  see the backend's output with `corral logs m`",
    ]


async def test_a_load_that_fails_tells_every_cause(world: World) -> None:
    model = world.loader.add("m")
    model.failures.add(backend="llama-cpp", message="no such file", count=2)
    failed = model.failures.add(backend="whisper", message="not a sound")
    for time in (failed.retry_time, model.retry_time):
        time.GetCurrentTime()
        time.seconds += 3600
    info = log_line(4, "all is well")
    info.level = loader_pb2.LogLine.LEVEL_INFO
    world.loader.lines = [
        log_line(1, "hello", "STDOUT"),
        log_line(2, "cannot open\x1b[2J m.gguf"),
        log_line(3, "nothing fits"),
        info,
    ]
    world.loader.load_error = errors.ModelLoadError("nothing fits")
    done = await world.run("load", "m")
    error, one, two, stderr, hint = done.err.splitlines()[-5:]
    assert error == "error: nothing fits"
    assert one == "       llama-cpp: no such file (2 times)"
    assert two.startswith("       whisper: not a sound; next try in ")
    assert stderr == "       stderr: cannot open\\x1b[2J m.gguf"
    assert "; next try in " in hint
    assert hint.endswith(", or at once with `corral load m --now`")
    json = await world.run("load", "m", "--json")
    assert '"details": ["llama-cpp: no such file (2 times)"' in json.err


async def test_a_load_without_room_tells_who_is_in_the_way(world: World) -> None:
    world.loader.add("m")
    plan = world.loader.plans["m"] = loader_pb2.PlanEvictionResponse(fits=False)
    plan.blockers.add(model="models/big", explanation="it is pinned")
    plan.blockers.add(model="models/told", explanation="it is pinned")
    world.loader.load_error = errors.NoRoomError(
        "needs 3 GiB on gpu0, and told stays", retry_after=12
    )
    done = await world.run("load", "m")
    error, blocker, hint = done.err.splitlines()[-3:]
    assert error == "error: needs 3 GiB on gpu0, and told stays"
    assert blocker == "       big stays: it is pinned"
    assert "`corral plan m`" in hint
    assert hint.endswith("try again in 12 s")


async def test_a_load_that_takes_too_long_goes_on(world: World) -> None:
    world.loader.add("m")
    world.loader.load_seconds = 30
    done = await world.run("load", "m", "--timeout", "200ms")
    assert done.code == 1
    assert "m was not ready within 0.20 s" in done.err
    assert "the load goes on" in done.err


async def test_a_busy_model_is_not_unloaded_without_force(world: World) -> None:
    model = world.loader.add("m", STATE.STATE_READY, queued_calls=2)
    model.instances[0].active_calls = 3
    done = await world.run("unload", "m")
    assert done.code == 1
    assert "3 calls run and 2 wait" in done.err
    assert "`corral unload m --force`" in done.err
    assert (await world.run("unload", "m", "--force")).code == 0


async def test_all_are_unloaded_and_one_stays(world: World) -> None:
    for name in ("a", "b", "busy"):
        world.loader.add(name, STATE.STATE_READY)
    world.loader.add("idle")
    world.loader.add("broken", STATE.STATE_FAILED)
    world.loader.models["busy"].instances[0].active_calls = 1
    done = await world.run("unload", "--all")
    assert done.code == 1
    assert sorted(line.split(",")[0] for line in done.out.splitlines()) == [
        "a is unloaded",
        "b is unloaded",
    ]
    assert "busy stays loaded: it answers a call" in done.err
    assert "`corral unload --all --force`" in done.err
    forced = await world.run("unload", "--all", "--force", "--json")
    assert [model["name"] for model in forced.json["models"]] == ["busy"]
    assert forced.json["failed"] == []
    assert (await world.run("unload", "--all")).out == "no model is loaded\n"


@pytest.mark.parametrize("args", [[], ["m", "--all"]])
async def test_unload_wants_one_model_or_all(world: World, args: list[str]) -> None:
    done = await world.run("unload", *args)
    assert done.code == 2
    assert "--all" in done.err


async def test_an_unknown_model(world: World) -> None:
    for command in (
        ["load", "x"],
        ["unload", "x"],
        ["logs", "x"],
        ["status", "x"],
        ["status", "x", "--watch"],
        ["plan", "x"],
        ["pin", "x"],
        ["run", "x", "y"],
    ):
        done = await world.run(*command)
        assert done.code == 1, command
        assert done.out == ""
        assert done.err.startswith("error: model 'x' not found\nnext:  "), command


async def test_a_name_that_is_nearly_right(world: World) -> None:
    world.loader.add("smollm2-135m")
    for name in ("smollm2-135", "smolm2-135m", "SMOL"):
        done = await world.run("load", name)
        assert done.err.splitlines() == [
            f"error: there is no model {name!r} here",
            "next:  did you mean smollm2-135m? list all with `corral models`",
        ]


async def test_a_model_that_only_needs_installing(world: World) -> None:
    world.gallery.entries = [
        gallery_pb2.ModelEntry(id="tiny", gallery="localai", backend="llama-cpp")
    ]
    done = await world.run("run", "tiny", "hello")
    assert done.err.splitlines()[1] == "next:  install it first: `corral install tiny`"
