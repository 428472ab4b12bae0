"""What a look at those who wait for room costs, and that it forgets nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from services.loader import scheduler as module
from services.loader.eviction import Occupant, Plan
from services.loader.lifecycle import StopReason
from services.loader.scheduler import Scheduler, Wish
from services.loader.tunables import LiveSettings
from tests.tools.waiting import eventually

MANY = 200


class Busy:
    """A model in use."""

    name, loading = "busy", False
    memory = 90

    def occupancy(self) -> Occupant | None:
        return Occupant(self.name, busy=True, memory={"ram": self.memory})

    def evict(self, reason: StopReason, *, force: bool) -> None:
        raise AssertionError("a model in use is left alone")


class Counting:
    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, newcomer: Any, *rest: Any) -> Plan:
        self.names.append(newcomer.name)
        return PLAN(newcomer, *rest)


PLAN = module.plan


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    counting = Counting()
    monkeypatch.setattr(module, "plan", counting)
    yield counting


async def test_a_look_plans_for_those_only_that_may_fit(plans: Counting) -> None:
    busy = Busy()
    scheduler = Scheduler(
        tenants=lambda: (busy,),
        settings=LiveSettings({"lru_eviction_max_retries": 1000}, ()),
        free=lambda occupants, settings: {"ram": 100 - sum(o.memory["ram"] for o in occupants)},
    )
    granted: list[str] = []

    def ask(name: str, need: int) -> None:
        def take() -> None:
            granted.append(name)
            busy.memory += need

        scheduler.ask(Wish(name, {"ram": need}, take, print))

    for number in range(MANY):
        ask(f"w{number}", 20 + number % 7)
    plans.names.clear()
    scheduler.wake()
    assert len(plans.names) <= 7
    plans.names.clear()
    # What keeps each of them is looked at in turn.
    await eventually(lambda: len(set(plans.names)) == MANY, what="a look at each")
    busy.memory = 79
    scheduler.wake()
    assert granted == ["w0"], "the first that fits"
    for number in range(MANY):
        scheduler.withdraw(f"w{number}")
