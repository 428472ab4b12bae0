"""Supervisors and scheduler in a small world: waiting calls when something unexpected happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.common.backoff import Backoff
from services.common.errors import CorralError
from services.loader.instances.instance import Lease, LoadAnswer
from services.loader.lifecycle.events import Cause, StopReason
from services.loader.lifecycle.state import Phase
from services.loader.models.catalog import ModelEntry
from services.loader.models.config import ModelConfig
from services.loader.processes.interface import Exit
from services.loader.supervision.supervisor import Supervisor
from tests.tools.scripted_world import World
from tests.tools.waiting import eventually

ASKED = StopReason(Cause.REQUESTED, "unloaded on request")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.tasks.close()


def entry(name: str, revision: str = "", **config: Any) -> ModelEntry:
    found = ModelConfig.model_validate({"name": name, **config})
    return ModelEntry(name, found, revision=revision)


def call(world: World, wanted: ModelEntry, *candidates: str) -> asyncio.Task[Lease]:
    supervisor = world.supervisors[wanted.name]
    return asyncio.create_task(supervisor.loads.acquire(wanted, candidates or ("x",), calls=True))


async def phase(supervisor: Supervisor, wanted: Phase) -> None:
    await eventually(lambda: supervisor.state.phase is wanted, what=f"{wanted}")


async def comes_up(world: World, name: str) -> None:
    await eventually(lambda: name in world.processes, what=f"a process of {name}")
    process = world.processes[name]
    process.started.set_result(None)
    process.loaded.set_result(LoadAnswer(True, ""))
    await phase(world.supervisors[name], Phase.READY)


async def goes(world: World, name: str) -> None:
    await phase(world.supervisors[name], Phase.STOPPING)
    process = world.processes[name]
    process.gone.set_result(None)
    await eventually(lambda: world.processes.get(name) is not process, what="the end")


async def queued(world: World, wanted: ModelEntry) -> tuple[Lease, asyncio.Task[Lease]]:
    """Return the lease of a running call, and a call that waits for a slot."""
    first = call(world, wanted)
    await comes_up(world, wanted.name)
    second = call(world, wanted)
    await eventually(lambda: world.meter.waiting == 1, what="a call in the queue")
    return await first, second


ONE: dict[str, Any] = {"limits": {"max_concurrent": 1}}


async def test_queued_calls_outlive_a_crash(world: World) -> None:
    _, second = await queued(world, entry("a", **ONE))
    world.processes["a"].exit.set_result(Exit(code=1))
    await goes(world, "a")
    await comes_up(world, "a")
    (await asyncio.wait_for(second, 5)).release()


async def test_queued_calls_outlive_an_unload(world: World) -> None:
    first, second = await queued(world, entry("a", **ONE))
    stop = asyncio.create_task(world.supervisors["a"].stop(ASKED, force=False))
    await phase(world.supervisors["a"], Phase.DRAINING)
    first.release()
    await goes(world, "a")
    await stop
    await comes_up(world, "a")
    (await asyncio.wait_for(second, 5)).release()


async def test_queued_calls_are_told_that_the_loader_drains(world: World) -> None:
    first, second = await queued(world, entry("a", **ONE))
    supervisor = world.supervisors["a"]
    reason = StopReason(Cause.SHUTDOWN, "the loader drains")
    stop = asyncio.create_task(supervisor.stop(reason, force=False))
    with pytest.raises(CorralError, match="the loader drains"):
        await asyncio.wait_for(second, 5)
    first.release()
    await goes(world, "a")
    await stop
    assert supervisor.state.phase is Phase.STOPPED


async def test_nobody_waits_behind_a_forced_unload(world: World) -> None:
    first, second = await queued(world, entry("a", **ONE))
    stop = asyncio.create_task(world.supervisors["a"].stop(ASKED, force=True))
    with pytest.raises(CorralError, match="unloaded on request"):
        await asyncio.wait_for(second, 5)
    first.release()
    world.allowed.add("a")
    await goes(world, "a")
    await stop
    assert world.supervisors["a"].state.phase is Phase.STOPPED


async def test_an_estimate_that_fails_holds_nobody_up(world: World) -> None:
    world.estimate_fails = OSError("stale file handle")
    waiting = call(world, entry("a"))
    await comes_up(world, "a")
    (await waiting).release()


async def test_a_setting_that_changes_between_reservation_and_load_waits_for_the_next_load(
    world: World,
) -> None:
    world.live.update({"context_size": 1000})
    waiting = call(world, entry("a"))
    await eventually(lambda: "a" in world.processes, what="a process")
    world.live.update({"context_size": 2000})
    await comes_up(world, "a")
    assert world.processes["a"].options == {"ContextSize": 1000, "Backend": "x"}
    (await waiting).release()


async def test_options_reserved_for_one_backend_are_not_sent_to_another(world: World) -> None:
    """An alias may refer to another build by the time the model gets its memory."""
    world.aliases["x"] = "build-1"
    reserve = world.reserve

    def reserve_and_change(*arguments: Any, **more: Any) -> Any:
        reservation = reserve(*arguments, **more)
        world.aliases["x"] = "build-2"
        return reservation

    world.reserve = reserve_and_change  # type: ignore[method-assign]
    waiting = call(world, entry("a"))
    await comes_up(world, "a")
    assert world.processes["a"].options is not None
    assert world.processes["a"].options["Backend"] == "build-2"
    (await waiting).release()


async def test_one_that_runs_elsewhere_takes_no_place_from_the_first_moment_on(
    world: World,
) -> None:
    world.external.add("far")
    world.live.update({"max_active_backends": 1})
    local = call(world, entry("a"))
    await comes_up(world, "a")
    (await local).release()
    call(world, entry("b"), "far")
    await comes_up(world, "b")
    assert world.supervisors["a"].state.phase is Phase.READY


async def test_a_wait_behind_one_that_starves_is_only_for_what_it_needs(world: World) -> None:
    world.live.update({"starvation_bound": 0.2})
    first = call(world, entry("a", concurrency_groups=["g"]))
    await comes_up(world, "a")
    starving = call(world, entry("b", concurrency_groups=["g"]))
    await eventually(
        lambda: world.supervisors["a"].state.phase is Phase.DRAINING, what="the drain of a"
    )
    call(world, entry("p"))
    await comes_up(world, "p")
    assert not starving.done()
    (await first).release()


async def test_unrelated_comings_and_goings_keep_nobody_waiting(world: World) -> None:
    """A model that will not fit even after another has stopped is still refused in time."""
    world.live.update({"lru_eviction_max_retries": 0})
    for name in ("a", "b"):
        waiting = call(world, entry(name))
        await comes_up(world, name)
        lease = await waiting
        if name == "b":
            lease.release()
    stop = asyncio.create_task(world.supervisors["b"].stop(ASKED, force=False))
    await phase(world.supervisors["b"], Phase.STOPPING)
    refused = call(world, entry("big"))
    with pytest.raises(CorralError, match="does not fit"):
        await asyncio.wait_for(refused, 5)
    await goes(world, "b")
    await stop


async def test_what_a_model_waits_for_is_told_no_more_than_once_a_second(world: World) -> None:
    told: list[str] = []
    world.scheduler.listen(told.append)
    first = call(world, entry("c"))
    await comes_up(world, "c")
    lease = await first
    world.taken = 20
    waiting = call(world, entry("b"))
    await phase(world.supervisors["b"], Phase.WAITING)
    for taken in range(20, 50):
        world.taken = taken
        world.scheduler.wake()
        await asyncio.sleep(0)
    await eventually(lambda: bool(told), what="news")
    assert len(told) <= 2
    waiting.cancel()
    lease.release()


async def test_an_unload_is_told_as_one_whatever_failed_before(world: World) -> None:
    supervisor = world.supervisors["a"]
    failed = call(world, entry("a"), "x")
    await eventually(lambda: "a" in world.processes, what="a process")
    world.processes["a"].started.set_exception(CorralError("cannot start"))
    await goes(world, "a")
    with pytest.raises(CorralError, match="cannot start"):
        await failed
    second = call(world, entry("a"), "x", "y")
    await comes_up_to(world, "a", Phase.STARTING)
    world.allowed.add("a")
    stop = asyncio.create_task(supervisor.stop(ASKED, force=False))
    with pytest.raises(CorralError) as told:
        await second
    assert told.value.reason == "MODEL_UNLOADED"
    await goes(world, "a")
    await stop


async def comes_up_to(world: World, name: str, wanted: Phase) -> None:
    await eventually(lambda: name in world.processes, what=f"a process of {name}")
    await phase(world.supervisors[name], wanted)


async def test_what_changed_while_it_loaded_is_taken_up_when_it_is_loaded(world: World) -> None:
    supervisor = world.supervisors["a"]
    supervisor.loads.begin(entry("a", "1"), ("x",))
    await comes_up_to(world, "a", Phase.STARTING)
    supervisor.configuration_changed("2")
    process = world.processes["a"]
    process.started.set_result(None)
    process.loaded.set_result(LoadAnswer(True, ""))
    await goes(world, "a")


async def test_a_clock_that_is_set_back_prolongs_no_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = world.supervisors["a"]
    supervisor.backoffs._backoff = lambda: Backoff(initial=0.1, maximum=0.1)
    failed = call(world, entry("a"))
    await eventually(lambda: "a" in world.processes, what="a process")
    world.processes["a"].started.set_exception(CorralError("cannot start"))
    await goes(world, "a")
    with pytest.raises(CorralError, match="cannot start"):
        await failed
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 86400)
    await phase(supervisor, Phase.STOPPED)
    again = call(world, entry("a"))
    await comes_up(world, "a")
    (await again).release()
    assert supervisor.instance and 0 <= supervisor.instance.load_seconds < 60


async def test_a_stop_that_fails_keeps_nobody_waiting(world: World) -> None:
    waiting = call(world, entry("a"))
    await comes_up(world, "a")
    (await waiting).release()
    process = world.processes["a"]
    stop = asyncio.create_task(world.supervisors["a"].stop(ASKED, force=False))
    await phase(world.supervisors["a"], Phase.STOPPING)
    process.gone.set_exception(OSError("no space left on device"))
    await asyncio.wait_for(stop, 5)
    assert world.supervisors["a"].state.phase is Phase.STOPPED


async def test_time_without_a_slot_is_no_time_in_which_room_was_lacking(world: World) -> None:
    world.live.update({"parallel_loads": 1, "lru_eviction_max_retries": 1})
    world.live.update({"lru_eviction_retry_interval": 0.5})
    first = call(world, entry("c"))
    await comes_up(world, "c")
    lease = await first
    second = call(world, entry("a"))
    await comes_up_to(world, "a", Phase.STARTING)
    third = call(world, entry("b"))
    await asyncio.wait([third], timeout=0.8)
    await comes_up(world, "a")
    await asyncio.wait([third], timeout=0.2)
    assert not third.done()
    (await second).release()
    lease.release()
    await goes(world, "a" if world.supervisors["a"].state.phase is Phase.STOPPING else "c")
    await comes_up(world, "b")
    (await third).release()


async def test_hundreds_of_queued_calls_leave_at_once(world: World) -> None:
    world.live.update({"queue_size": 1000})
    world.meter.ceiling = lambda: 1000
    first, second = await queued(world, entry("a", **ONE))
    others = [call(world, entry("a", **ONE)) for _ in range(600)]
    await eventually(lambda: world.meter.waiting == 601, what="all calls in the queue")
    began = time.monotonic()
    for other in (second, *others):
        other.cancel()
    await asyncio.wait(others)
    assert time.monotonic() - began < 1.0
    assert world.meter.waiting == 0 and world.supervisors["a"].leases.calls == 0
    first.release()
    assert world.meter.total == 0
