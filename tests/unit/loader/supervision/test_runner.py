"""The end of an instance: its exit is reported once, and only the machine's effect ends its calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.common.errors import BackendCrashedError, CorralError, ModelUnloadedError
from services.loader.instances.instance import Instance, Lease, LoadAnswer
from services.loader.lifecycle.events import Cause, Event, Exited, StopReason
from services.loader.lifecycle.state import Phase
from services.loader.models.catalog import ModelEntry
from services.loader.models.config import ModelConfig
from services.loader.processes.interface import Exit
from services.loader.supervision.supervisor import Supervisor
from tests.tools.scripted_world import Process, World
from tests.tools.waiting import eventually

ENTRY = ModelEntry("a", ModelConfig.model_validate({"name": "a"}))
ASKED = StopReason(Cause.REQUESTED, "unloaded on request")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.tasks.close()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[CorralError]:
    """What each call of `Instance.end` ended the calls with."""
    errors: list[CorralError] = []
    end = Instance.end

    def record(instance: Instance, error: CorralError) -> None:
        errors.append(error)
        end(instance, error)

    monkeypatch.setattr(Instance, "end", record)
    return errors


class Turns:
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.now = 0
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self.now += 1
        self._next = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        self._next.cancel()


async def loading(world: World) -> tuple[Process, asyncio.Task[Lease]]:
    waiting = asyncio.create_task(world.supervisors["a"].loads.acquire(ENTRY, ("x",), calls=True))
    await eventually(lambda: "a" in world.processes, what="a process")
    process = world.processes["a"]
    process.started.set_result(None)
    await phase(world, Phase.LOADING)
    return process, waiting


async def ready(world: World) -> tuple[Process, Lease]:
    process, waiting = await loading(world)
    process.loaded.set_result(LoadAnswer(True, ""))
    return process, await waiting


async def phase(world: World, wanted: Phase) -> None:
    await eventually(lambda: world.supervisors["a"].state.phase is wanted, what=f"{wanted}")


async def test_running_calls_end_in_the_turn_in_which_the_exit_is_reported(
    world: World, ends: list[CorralError], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = world.supervisors["a"]
    process, lease = await ready(world)
    turns = Turns()
    reported, cut = [], []
    take = Supervisor._take

    def record(self: Supervisor, event: Event) -> None:
        if isinstance(event, Exited):
            reported.append(turns.now)
        take(self, event)

    monkeypatch.setattr(Supervisor, "_take", record)
    lease.on_cut(lambda: cut.append((turns.now, lease.instance.ended.result())))
    process.exit.set_result(Exit(code=3))
    await phase(world, Phase.STOPPING)
    turns.stop()
    [(turn, error)] = cut
    assert [turn] == reported
    assert isinstance(error, BackendCrashedError) and error.metadata["exit_code"] == "3"
    lease.release()
    process.gone.set_result(None)
    await phase(world, Phase.STOPPED)
    assert ends == [error] and supervisor.instance is None


async def test_a_drained_instance_ends_once_after_its_last_call(
    world: World, ends: list[CorralError]
) -> None:
    supervisor = world.supervisors["a"]
    process, lease = await ready(world)
    probe = supervisor.leases.probe()
    assert probe is not None
    cut: list[CorralError] = []
    probe.on_cut(lambda: cut.append(probe.instance.ended.result()))
    stop = asyncio.create_task(supervisor.stop(ASKED, force=False))
    await phase(world, Phase.DRAINING)
    assert not cut
    lease.release()
    assert not cut, "the caller that released the last lease is still at work"
    assert supervisor.state.phase is Phase.STOPPING
    await eventually(lambda: cut, what="the end of the probe")
    assert cut == ends and isinstance(cut[0], ModelUnloadedError)
    process.gone.set_result(None)
    await stop
    probe.release()
    assert len(ends) == 1


async def test_a_forced_stop_ends_the_calls_once(world: World, ends: list[CorralError]) -> None:
    process, lease = await ready(world)
    world.allowed.add("a")
    stop = asyncio.create_task(world.supervisors["a"].stop(ASKED, force=True))
    await phase(world, Phase.STOPPING)
    assert [str(error) for error in ends] == ["model 'a' was unloaded: unloaded on request"]
    lease.release()
    process.gone.set_result(None)
    await stop
    assert len(ends) == 1


async def test_an_exit_while_loading_is_what_the_callers_get(world: World) -> None:
    """The connection breaks first; the exit, which explains it, follows within the time for it."""
    world.live.update({"lru_eviction_max_retries": 0})
    supervisor = world.supervisors["a"]
    timeouts = supervisor._runner._timeouts
    supervisor._runner._timeouts = type(timeouts)(1e6, 0, 1e6, 1e6, 1, 1e6, 5.0, 1e6)
    process, waiting = await loading(world)
    process.loaded.set_exception(CorralError("connection reset"))
    await asyncio.sleep(0)
    process.exit.set_result(Exit(code=9))
    process.gone.set_result(None)
    with pytest.raises(CorralError, match="code 9"):
        await asyncio.wait_for(waiting, 5)


async def test_a_load_fails_also_where_watching_the_process_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its callers would wait forever: the exit is never reported."""
    process, waiting = await loading(world)

    async def broken(lines: float) -> None:
        raise OSError("the pipe is broken")

    monkeypatch.setattr(process, "drain_output", broken)
    process.exit.set_result(Exit(code=9))
    process.loaded.set_exception(CorralError("the connection was reset"))
    process.gone.set_result(None)
    with pytest.raises(CorralError, match="the connection was reset"):
        await asyncio.wait_for(waiting, 5)
