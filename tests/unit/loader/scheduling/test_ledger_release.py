"""The last part of an unload: the backend's memory must be free before the unload is reported."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.loader.backends.catalog import Backend
from services.loader.devices.devices import Device
from services.loader.instances.instance import Instance
from services.loader.lifecycle.events import Cause, StopReason
from services.loader.lifecycle.state import Phase
from services.loader.memory.learned import Footprints
from services.loader.memory.reservation import Reservation
from services.loader.models.catalog import ModelEntry
from services.loader.scheduling.ledger import Ledger
from tests.tools.scripted_world import World
from tests.tools.waiting import eventually

ASKED = StopReason(Cause.REQUESTED, "asked")


class Driver:
    """A GPU driver that frees memory only some polls after the processes are gone."""

    def __init__(self, looks: int) -> None:
        self.left = deque([{"gpu0": 1}] * looks)

    def measure(self, group: int, uid: str) -> dict[str, int]:
        return self.left.popleft() if self.left else {}


class NoDevices:
    def read(self) -> tuple[Device, ...]:
        return ()


def ledger(driver: Driver, tmp_path: Path, timeout: float) -> Ledger:
    return Ledger(
        devices=NoDevices(),
        predict=lambda entry, backend: Reservation(),
        measure=driver,
        footprints=Footprints(tmp_path / "footprints.json"),
        release_timeout=timeout,
    )


def instance(memory: dict[str, int]) -> Instance:
    found = Instance("uid", 1, "m", Backend("b"), ModelEntry("m"), 0.0)
    found.process = cast(Any, SimpleNamespace(pid=1))
    found.memory = memory
    return found


async def test_the_memory_of_a_gpu_is_waited_for(tmp_path: Path) -> None:
    driver = Driver(looks=3)
    await ledger(driver, tmp_path, timeout=10).released(instance({"ram": 1, "gpu0": 1}))
    assert not driver.left


async def test_main_memory_needs_no_look_and_a_driver_no_patience_for_ever(tmp_path: Path) -> None:
    driver = Driver(looks=10_000)
    await ledger(driver, tmp_path, timeout=10).released(instance({"ram": 1}))
    assert len(driver.left) == 10_000
    await ledger(driver, tmp_path, timeout=0.05).released(instance({"gpu0": 1}))
    assert driver.left


async def test_an_unload_ends_after_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    free = asyncio.Event()

    async def released(self: World, instance: Instance) -> None:
        await free.wait()

    monkeypatch.setattr(World, "released", released)
    world = World()
    supervisor = world.supervisors["c"]
    entry = ModelEntry("c")
    lease = asyncio.ensure_future(supervisor.loads.acquire(entry, ("x",), calls=False))
    process = await eventually(lambda: world.processes.get("c"), what="the process")
    process.started.set_result(None)
    process.loaded.set_result(cast(Any, SimpleNamespace(success=True, message="")))
    (await lease).release()
    unload = asyncio.ensure_future(supervisor.stop(ASKED, force=False))
    process.gone.set_result(None)
    await eventually(lambda: "c" not in world.processes, what="the end of the process")
    await asyncio.wait([unload], timeout=0.05)
    assert not unload.done() and supervisor.state.phase is Phase.STOPPING
    assert supervisor.occupancy() is not None, "its memory is not given to other models yet"
    free.set()
    await asyncio.wait_for(unload, 5)
    assert supervisor.occupancy() is None
    await world.tasks.close()
