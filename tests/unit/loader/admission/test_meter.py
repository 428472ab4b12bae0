"""Which calls are admitted, how long others wait, and which are refused, with real supervisors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import DeadlineError, DeadlineTooShortError, QueueFullError
from services.loader.admission.meter import Caller
from services.loader.admission.wait_estimate import (
    CERTAIN,
    EVIDENCE,
    LATEST,
    LOAD_EVIDENCE,
    SOONEST,
    UNKNOWN,
    CallDurations,
    at_least,
    expected,
    retry_after,
)
from services.loader.instances.instance import Lease, LoadAnswer
from services.loader.lifecycle.events import Cause, StopReason
from services.loader.lifecycle.state import Phase
from services.loader.models.catalog import ModelEntry
from services.loader.models.config import ModelConfig
from services.loader.processes.interface import Exit
from services.loader.supervision.supervisor import Supervisor
from tests.tools.scripted_world import World
from tests.tools.waiting import eventually


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.live.update({"queue_size": 4})
    yield world
    await world.tasks.close()


def entry(places: int = 1, name: str = "a", **limits: Any) -> ModelEntry:
    config = {"name": name, "limits": {"max_concurrent": places, **limits}}
    return ModelEntry(name, ModelConfig.model_validate(config))


class Calls:
    """Calls of a model, and the queue positions they receive."""

    def __init__(self, world: World, wanted: ModelEntry) -> None:
        self.world, self.entry = world, wanted
        self.supervisor: Supervisor = world.supervisors[wanted.name]
        self.told: list[tuple[str, int]] = []
        self.served: list[str] = []

    def caller(self, client: str = "one", seconds: float | None = None) -> Caller:
        return Caller(
            client,
            None if seconds is None else time.monotonic() + seconds,
            lambda position: self.told.append((client, position)),
        )

    async def begin(self, *clients: str) -> list[asyncio.Task[Lease]]:
        tasks = [asyncio.create_task(self.call(client)) for client in clients]
        await asyncio.sleep(0)
        return tasks

    async def call(self, client: str = "one", seconds: float | None = None) -> Lease:
        caller = self.caller(client, seconds)
        lease = await self.supervisor.loads.acquire(self.entry, ("x",), calls=True, caller=caller)
        self.served.append(client)
        return lease

    async def up(self) -> None:
        await eventually(lambda: self.entry.name in self.world.processes, what="a process")
        process = self.world.processes[self.entry.name]
        process.started.set_result(None)
        process.loaded.set_result(LoadAnswer(True, ""))
        await eventually(lambda: self.supervisor.state.phase is Phase.READY, what="the model")

    async def running(self) -> Lease:
        """Return the lease of a running call."""
        (first,) = await self.begin("first")
        await self.up()
        return await first

    def pace(self, *, calls: float = 0.0, load: float = 0.0) -> None:
        pace = self.supervisor.leases.pace
        if calls:
            pace.calls.extend([calls] * 64)
        if load:
            pace.loads.clear()
            pace.loads.extend([load] * LOAD_EVIDENCE)


async def test_clients_take_turns(world: World) -> None:
    calls = Calls(world, entry())
    lease = await calls.running()
    waiting = await calls.begin("many", "many", "many", "one")
    assert calls.told == [("many", 1), ("many", 2), ("many", 3), ("one", 2)]
    while waiting:
        lease.release()
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        (task,) = done
        waiting.remove(task)
        lease = task.result()
    lease.release()
    assert calls.served == ["first", "many", "one", "many", "many"]


async def test_they_take_turns_too_where_all_wait_for_one_load(world: World) -> None:
    calls = Calls(world, entry(places=2))
    waiting = await calls.begin("many", "many", "many", "one")
    await calls.up()
    await eventually(lambda: len(calls.served) == 2, what="both places taken")
    assert sorted(calls.served) == ["many", "one"]
    assert calls.told == [("many", 1), ("many", 2)], "calls served after the load never queued"
    for _ in range(2):
        next(task for task in waiting if task.done() and task.result()._released).result().release()
    await eventually(lambda: len(calls.served) == 4, what="the others")


async def test_a_full_queue_makes_way_for_who_has_less_of_it(world: World) -> None:
    calls = Calls(world, entry())
    lease = await calls.running()
    many = await calls.begin("many", "many", "many", "many")
    (own,) = await calls.begin("many")
    with pytest.raises(QueueFullError):
        await own
    (one,) = await calls.begin("one")
    with pytest.raises(QueueFullError) as told:
        await many.pop()
    assert told.value.retry_after and told.value.metadata["queue_length"] == "4"
    assert calls.supervisor.leases.calls == 4
    (two,) = await calls.begin("one")
    with pytest.raises(QueueFullError):
        await many.pop()
    (three,) = await calls.begin("one")
    with pytest.raises(QueueFullError):
        await three  # the client already has its share
    for task in (*many, one, two):
        lease.release()
        await eventually(lambda: len(calls.served) > 1, what="the next")
        task.cancel()
    await asyncio.gather(*many, one, two, return_exceptions=True)


async def test_so_does_the_ceiling_over_all_models(world: World) -> None:
    world.live.update({"queue_size": 100})
    world.meter.ceiling = lambda: 4
    calls = Calls(world, entry())
    lease = await calls.running()
    many = await calls.begin("many", "many", "many")
    other = ModelEntry("c", ModelConfig.model_validate({"name": "c"}))
    newcomer = asyncio.create_task(
        world.supervisors["c"].loads.acquire(other, ("x",), calls=True, caller=calls.caller("one"))
    )
    with pytest.raises(QueueFullError, match="max_concurrent_backend_requests"):
        await many.pop()
    assert world.meter.total == 4 and world.supervisors["c"].leases.calls == 1
    world.meter.check("two")
    with pytest.raises(QueueFullError):
        world.meter.check("many")
    for task in (*many, newcomer):
        task.cancel()
    await asyncio.gather(*many, newcomer, return_exceptions=True)
    lease.release()
    assert world.meter.total == 0


async def test_what_cannot_begin_in_time_is_refused_at_once(world: World) -> None:
    calls = Calls(world, entry())
    lease = await calls.running()
    waiting = await calls.begin("one", "two")
    calls.pace(calls=1.0)
    with pytest.raises(DeadlineTooShortError) as told:
        await calls.call("three", seconds=1.5)
    assert told.value.retry_after == pytest.approx(3.0)
    assert told.value.metadata["position"] == "3" and told.value.metadata["queue_length"] == "2"
    late = asyncio.create_task(calls.call("three", seconds=2.5))
    await eventually(lambda: calls.supervisor.leases.calls == 3, what="a call that has the time")
    for task in (*waiting, late):
        task.cancel()
    await asyncio.gather(*waiting, late, return_exceptions=True)
    lease.release()


async def test_without_evidence_nobody_is_refused_for_a_deadline(world: World) -> None:
    calls = Calls(world, entry())
    lease = await calls.running()
    calls.supervisor.leases.pace.calls.extend([100.0] * (EVIDENCE - 1))
    waiting = await calls.begin("one")
    late = asyncio.create_task(calls.call("two", seconds=1.0))
    await eventually(lambda: calls.supervisor.leases.calls == 2, what="both in the queue")
    for task in (*waiting, late):
        task.cancel()
    await asyncio.gather(*waiting, late, return_exceptions=True)
    lease.release()


async def test_the_first_load_alone_refuses_nobody(world: World) -> None:
    calls = Calls(world, entry())
    calls.supervisor.leases.pace.loads.append(10.0)
    late = asyncio.create_task(calls.call(seconds=2.0))
    await calls.up()  # from the page cache
    (await late).release()


async def test_how_long_another_configuration_took_says_nothing(world: World) -> None:
    calls = Calls(world, entry())
    calls.supervisor.entry = calls.entry
    calls.pace(calls=10.0, load=10.0)
    changed = replace(calls.entry, revision="another")
    calls.supervisor.configuration_changed("another")
    calls.entry = changed
    several = [asyncio.create_task(calls.call(str(n), seconds=2.0)) for n in range(3)]
    await calls.up()
    for each in several:
        (await each).release()


async def test_how_long_another_backend_took_says_nothing(world: World) -> None:
    calls = Calls(world, entry())
    (await calls.running()).release()
    await stopped(world, calls)
    calls.pace(load=10.0)
    calls.supervisor.backends_changed(["other"])
    with pytest.raises(DeadlineTooShortError):
        await calls.call(seconds=2.0)
    await calls.up()
    await stopped(world, calls)
    calls.supervisor.backends_changed(["x"])
    late = asyncio.create_task(calls.call(seconds=2.0))
    await calls.up()
    (await late).release()


async def stopped(world: World, calls: Calls) -> None:
    stop = asyncio.create_task(
        calls.supervisor.stop(StopReason(Cause.REQUESTED, "asked"), force=False)
    )
    await asyncio.sleep(0)
    world.processes[calls.entry.name].gone.set_result(None)
    await stop


async def test_a_load_that_takes_too_long_for_a_call_goes_on_without_it(world: World) -> None:
    calls = Calls(world, entry())
    calls.pace(load=10.0)
    with pytest.raises(DeadlineTooShortError) as told:
        await calls.call(seconds=2.0)
    assert told.value.retry_after == pytest.approx(10.0, abs=0.1)
    assert "goes on" in told.value.message
    await calls.up()
    (await calls.call(seconds=2.0)).release()


async def test_a_call_joins_a_load_that_is_nearly_over(world: World) -> None:
    calls = Calls(world, entry())
    calls.pace(load=0.3)
    with pytest.raises(DeadlineTooShortError):
        await calls.call(seconds=0.1)
    await eventually(lambda: "a" in world.processes, what="a process")

    async def joins() -> bool:
        try:
            joining = calls.supervisor.leases.join(calls.caller(seconds=0.1))
        except DeadlineTooShortError:
            return False
        joined = asyncio.create_task(joining)
        await calls.up()
        (await joined).release()
        return True

    await eventually(joins, what="a call that can wait for the rest")


async def test_whose_time_is_over_gets_no_place(world: World) -> None:
    calls = Calls(world, entry())
    lease = await calls.running()
    late = asyncio.create_task(calls.call("late", seconds=0.05))
    (other,) = await calls.begin("other")
    over = time.monotonic() + 0.05
    await eventually(lambda: time.monotonic() > over, what="the deadline")
    lease.release()
    with pytest.raises(DeadlineError):
        await late
    (await other).release()


async def test_a_lease_says_how_long_it_was_waited_for(world: World) -> None:
    calls = Calls(world, entry())
    first, second = await calls.begin("one", "two")
    await eventually(lambda: "a" in world.processes, what="a process")
    began = time.monotonic()
    await eventually(lambda: time.monotonic() - began > 0.1, what="some load time")
    await calls.up()
    lease = await first
    assert 0.1 < lease.load_time < 1.0 and lease.queue_time < lease.load_time
    served = time.monotonic()
    await eventually(lambda: time.monotonic() - served > 0.1, what="some time in the queue")
    lease.release()
    late = await second
    assert 0.1 < late.queue_time < 1.0 and late.load_time == pytest.approx(
        lease.load_time, abs=0.05
    )
    late.release()
    warm = await calls.call()
    assert warm.queue_time == warm.load_time == 0.0
    warm.release()


async def test_time_without_room_is_queue_time_and_told(world: World) -> None:
    in_the_way = Calls(world, entry(name="c"))
    held = await in_the_way.running()
    world.taken = 30
    calls = Calls(world, entry(places=0))
    (waiting,) = await calls.begin("one")
    await eventually(lambda: calls.told == [("one", 1)], what="a position")
    began = time.monotonic()
    await eventually(lambda: time.monotonic() - began > 0.1, what="some time without room")
    world.taken = 0
    await calls.up()
    lease = await waiting
    assert lease.queue_time > 0.1 > lease.load_time
    lease.release()
    held.release()


async def test_queued_calls_are_told_only_once(world: World) -> None:
    calls = Calls(world, entry())
    await calls.running()
    waiting = await calls.begin("one", "two")
    process = world.processes["a"]
    process.exit.set_result(Exit(code=1))
    process.gone.set_result(None)
    await eventually(lambda: world.processes.get("a", process) is not process, what="the next")
    await calls.up()
    (await waiting[0]).release()
    (await waiting[1]).release()
    assert calls.told == [("one", 1), ("two", 2)]


async def test_who_is_refused_is_told_how_long_the_queue_takes(world: World) -> None:
    calls = Calls(world, entry(places=2))
    leases = [await calls.running(), await calls.call()]
    waiting = await calls.begin("one", "one", "one", "one")
    calls.pace(calls=3.0)
    with pytest.raises(QueueFullError) as told:
        await calls.call()
    assert told.value.retry_after == pytest.approx(4 * 3.0 / 2)
    calls.pace(calls=1000.0)
    assert calls.supervisor.leases.retry_after() == LATEST
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for lease in leases:
        lease.release()


async def test_the_configuration_says_when_to_retry(world: World) -> None:
    calls = Calls(world, entry(retry_after_seconds=7))
    lease = await calls.running()
    assert calls.supervisor.leases.retry_after() == 7
    lease.release()


@given(
    st.lists(st.floats(0.001, 1000), max_size=100),
    st.integers(1, 600),
    st.integers(0, 16),
    st.floats(0, 1000),
    st.integers(0, 3),
)
def test_estimates_are_bounded_and_err_on_admitting(
    durations: list[float], position: int, places: int, load: float, loads: int
) -> None:
    pace = CallDurations()
    pace.calls.extend(durations)
    pace.loads.extend([load] * loads)
    least = at_least(pace, position, places, load)
    assert least <= expected(pace, position, places, load) + 1e-9
    assert at_least(pace, position + 1, places, load) >= least
    if len(durations) < EVIDENCE or not places or position <= places:
        assert least == (CERTAIN * load if loads >= LOAD_EVIDENCE else 0.0)
    assert SOONEST <= retry_after(expected(pace, position, places, load)) <= LATEST
    assert retry_after(0.0) == UNKNOWN
