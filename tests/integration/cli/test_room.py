"""`corral plan`, `pin`, `unpin`, `drain`, `settings` and `backends` as real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corral.loader.v1 import loader_pb2
from tests.fakes.services_fake import STATE
from tests.tools.corral_command import World, scripted_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with scripted_world(tmp_path) as made:
        yield made


# Room


async def test_a_plan_that_fits(world: World) -> None:
    world.loader.add("m")
    plan = world.loader.plans["m"] = loader_pb2.PlanEvictionResponse(
        fits=True, explanation="ram is short by 1 GiB"
    )
    plan.memory.add(device="ram", bytes=2**31, basis=loader_pb2.MemoryReservation.BASIS_ESTIMATED)
    eviction = plan.evictions.add(
        model="models/größe", freed_bytes=2**30, explanation="idle the longest"
    )
    eviction.idle_duration.seconds = 200
    done = await world.run("plan", "m")
    assert done.code == 0
    assert done.out.splitlines() == [
        "m fits if 1 model is evicted",
        "ram is short by 1 GiB",
        "it needs 2.0 GiB (estimated)",
        "",
        "EVICTED    FREES        IDLE  WHY",
        "größe    1.0 GiB  3 min 20 s  idle the longest",
    ]
    shown = (await world.run("plan", "m", "--json")).json
    assert shown["evictions"][0]["idle_seconds"] == 200
    assert shown["fits"]


async def test_a_plan_that_does_not_fit(world: World) -> None:
    world.loader.add("m")
    plan = world.loader.plans["m"] = loader_pb2.PlanEvictionResponse(fits=False)
    plan.blockers.add(model="models/a", explanation="it is pinned")
    plan.blockers.add(model="models/b", explanation="it is loading", temporary=True)
    done = await world.run("plan", "m")
    assert done.code == 1
    assert done.out.splitlines()[0] == "m does not fit"
    assert "b      may go soon  it is loading" in done.out
    assert "next:  wait, `corral unload`" in done.err


async def test_pins(world: World) -> None:
    world.loader.add("m")
    done = await world.run("pin", "m")
    assert done.out.startswith("m is pinned: ")
    assert "`corral load m`" in done.err
    assert world.loader.models["m"].pinned
    assert (await world.run("pin", "m")).out.startswith("m is pinned already")
    assert (await world.run("unpin", "m", "--json")).json["pinned"] is False
    assert (await world.run("unpin", "m")).out == "m is not pinned\n"


async def test_a_drain_tells_which_calls_were_cut(world: World) -> None:
    world.loader.add("m", STATE.STATE_READY)
    world.loader.cut_calls = 2
    done = await world.run("drain", "--timeout", "1m30s")
    assert "2 calls did not end in time and were cut" in done.out
    assert world.loader.requests[-1].timeout.seconds == 90
    assert (await world.run("drain", "--json")).json == {"cut_calls": 2}
    assert not world.loader.requests[-1].HasField("timeout")


# Settings


async def test_settings_are_listed_with_their_sources(world: World) -> None:
    world.loader.settings.watchdog_idle_timeout.seconds = 900
    world.loader.settings.memory_reclaimer_threshold = 0.95
    world.loader.sources = {"watchdog_idle_timeout": "start"}
    world.loader.meanings = {"watchdog_idle_timeout": "see watchdog_idle", "f16": "half precision"}
    done = await world.run("settings")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.out.splitlines()}
    assert rows["watchdog_idle_timeout"] == ["15m", "start  see watchdog_idle"]
    assert rows["memory_reclaimer_threshold"][0] == "0.95"
    assert rows["vram_budget"][0] == '""'
    shown = (await world.run("settings", "--json")).json["settings"]
    assert shown["watchdog_idle_timeout"]["value"] == 900
    assert shown["watchdog_idle_timeout"]["source"] == "start"
    assert shown["f16"]["meaning"] == "half precision"


async def test_a_loader_that_does_not_describe_its_settings(world: World) -> None:
    world.loader.settings.queue_size = 512
    done = await world.run("settings")
    header, *rows = done.out.splitlines()
    assert header.split() == ["SETTING", "VALUE", "FROM"]
    assert "queue_size 512" in [" ".join(row.split()) for row in rows]
    done = await world.run("settings", "set", "threads=four")
    assert "'four' is not a whole number" in done.err and "`corral settings`" in done.err


async def test_a_value_that_cannot_be_is_answered_with_the_meaning(world: World) -> None:
    world.loader.meanings = {"threads": "threads for each model"}
    done = await world.run("settings", "set", "threads=four")
    assert "it means: threads for each model" in done.err


async def test_settings_are_changed_together(world: World) -> None:
    done = await world.run(
        "settings", "set", "max-active-backends=2", "watchdog_idle=yes", "starvation_bound=1h30m"
    )
    assert done.out.splitlines() == [
        "max_active_backends: 0 → 2",
        "watchdog_idle: false → true",
        "starvation_bound: 0s → 1h30m",
    ]
    assert world.loader.settings.starvation_bound.seconds == 5400
    assert list(world.loader.requests[-1].update_mask.paths) == [
        "max_active_backends",
        "watchdog_idle",
        "starvation_bound",
    ]
    back = await world.run("settings", "set", "max_active_backends=0", "--json")
    assert back.json["changed"] == ["max_active_backends"]
    assert back.json["settings"]["max_active_backends"] == {
        "value": 0,
        "source": "runtime",
        "meaning": back.json["settings"]["max_active_backends"]["meaning"],
    }


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("watchdog_idel=true", "did you mean watchdog_idle?"),
        ("threads", "write threads=VALUE"),
        ("threads=four", "'four' is not a whole number"),
        ("watchdog_idle=maybe", "'maybe' is not true or false"),
        ("watchdog_interval=soon", "'soon' is not a duration"),
        ("max_active_backends=-1", "must not be negative"),
    ],
)
async def test_settings_that_cannot_be(world: World, typed: str, says: str) -> None:
    done = await world.run("settings", "set", "queue_size=9", typed)
    assert done.code == 2
    assert done.out == ""
    assert says in done.err
    assert world.loader.settings.queue_size == 0


# Backends


async def test_backends_usable_or_not(world: World) -> None:
    world.loader.backends = [
        loader_pb2.Backend(
            name="backends/llama-cpp",
            aliases=["llama", "gguf"],
            version="0.3.16",
            source=loader_pb2.Backend.SOURCE_BUNDLED,
            formats=["gguf"],
            usecases=["chat"],
            max_concurrent_calls=4,
        ),
        loader_pb2.Backend(
            name="backends/cuda12-llama-cpp",
            requires=["nvidia-cuda-12"],
            error="this machine has no NVIDIA GPU",
            source=loader_pb2.Backend.SOURCE_USER,
        ),
        loader_pb2.Backend(name="backends/tts", chosen="backends/piper", explanation="no GPU"),
    ]
    done = await world.run("backends")
    header, one, two, three = done.out.splitlines()
    assert header.split()[:3] == ["NAME", "USABLE", "VERSION"]
    assert one.split()[:5] == ["llama-cpp", "yes", "0.3.16", "bundled", "gguf"]
    assert two.split(maxsplit=4)[1:4] == ["no", "user", "nvidia-cuda-12"]
    assert two.endswith("this machine has no NVIDIA GPU")
    assert three.endswith("stands for piper · no GPU")
    detail = await world.run("backends", "gguf")
    assert "at once  4 calls" in detail.out
    shown = (await world.run("backends", "--json")).json
    assert [view["usable"] for view in shown["backends"]] == [True, False, True]
    missing = await world.run("backends", "lama-cpp")
    assert missing.code == 1
    assert "did you mean llama-cpp?" in missing.err
