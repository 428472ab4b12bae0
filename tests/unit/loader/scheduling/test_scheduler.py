"""The cost of a scheduling pass over the waiting requests, and that it forgets none of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import CorralError
from services.loader.lifecycle.events import StopReason
from services.loader.live_settings import LiveSettings
from services.loader.scheduling import scheduler as module
from services.loader.scheduling.eviction import Occupant, Plan, plan
from services.loader.scheduling.scheduler import RoomRequest, Scheduler
from tests.tools.waiting import eventually

MANY = 200


class Busy:
    """A model in use."""

    name, loading = "busy", False
    memory = 90

    def occupancy(self) -> Occupant | None:
        return Occupant(self.name, busy=True, memory={"ram": self.memory})

    def evict(self, reason: StopReason, *, force: bool) -> None:
        raise AssertionError("a model in use must not be evicted")


class Counting:
    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, newcomer: Any, *rest: Any) -> Plan:
        self.names.append(newcomer.name)
        return plan(newcomer, *rest)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    counting = Counting()
    monkeypatch.setattr(module, "plan", counting)
    yield counting


async def test_a_look_plans_for_those_only_that_may_fit(plans: Counting) -> None:
    busy = Busy()
    scheduler = Scheduler(
        settings=LiveSettings({"lru_eviction_max_retries": 1000}, ()),
        free=lambda occupants, settings: {"ram": 100 - sum(o.memory["ram"] for o in occupants)},
    )
    scheduler.add(busy)
    granted: list[str] = []

    def ask(name: str, need: int) -> None:
        def take() -> None:
            granted.append(name)
            busy.memory += need

        scheduler.ask(RoomRequest(name, {"ram": need}, take, print))

    for number in range(MANY):
        ask(f"w{number}", 20 + number % 7)
    plans.names.clear()
    scheduler.wake()
    assert len(plans.names) <= 7
    plans.names.clear()
    # The scheduler checks in turn what blocks each request.
    await eventually(lambda: len(set(plans.names)) == MANY, what="a plan for each request")
    busy.memory = 79
    scheduler.wake()
    assert granted == ["w0"], "the first request that fits"
    for number in range(MANY):
        scheduler.withdraw(f"w{number}")


class Model:
    """A model in a world without a clock of its own."""

    def __init__(self, name: str, occupant: Occupant | None = None) -> None:
        self.name, self.there, self.loading = name, occupant, False

    def occupancy(self) -> Occupant | None:
        return self.there

    def evict(self, reason: StopReason, *, force: bool) -> None:
        assert self.there is not None
        self.there = replace(self.there, settled=False, leaving=True)
        self.log.append(f"{self.name} goes {force=}")

    log: list[str]


class Room:
    """A scheduler, and a log of its decisions."""

    def __init__(self, *, shortcut: bool, live: dict[str, Any]) -> None:
        self.log: list[str] = []
        self.now = 0.0
        self.shortcut = shortcut
        self.models: dict[str, Model] = {}
        self.scheduler = Scheduler(
            settings=LiveSettings(live, ()),
            free=self.free,
            clock=lambda: self.now,
        )

    @staticmethod
    def free(occupants: Any, settings: Any) -> dict[str, int]:
        return {
            device: 10 - sum(each.memory.get(device, 0) for each in occupants)
            for device in ("ram", "gpu")
        }

    def look(self) -> None:
        names = {wish.name for wish in self.scheduler.queue}
        self.scheduler._look(frozenset() if self.shortcut else names)

    def add(self, name: str, occupant: Occupant) -> None:
        model = self.models[name] = Model(name, replace(occupant, name=name))
        model.log = self.log
        self.scheduler.add(model)

    def ask(self, name: str, need: Occupant) -> None:
        def granted() -> None:
            self.log.append(f"{name} is granted")
            self.add(name, replace(need, settled=False, leaving=False))

        def refused(error: CorralError) -> None:
            raise AssertionError("each request fits at some time") from error

        self.scheduler._queue.append(
            RoomRequest(
                name,
                need.memory,
                granted,
                refused,
                counts=need.counts,
                groups=need.groups,
                asked=self.now,
            )
        )
        self.look()


SHAPES = st.builds(
    Occupant,
    st.just("a model"),
    settled=st.booleans(),
    busy=st.booleans(),
    counts=st.booleans(),
    groups=st.sampled_from([frozenset(), frozenset(), frozenset("g")]),
    memory=st.one_of(
        st.builds(lambda size: {"ram": size}, st.integers(0, 7)),
        st.builds(
            lambda size, more: {"ram": size, "gpu": more}, st.integers(0, 7), st.integers(0, 7)
        ),
    ),
    idle=st.floats(0, 100),
    residence=st.floats(0, 100),
    came_back=st.booleans(),
    load_seconds=st.floats(0, 20),
    in_demand=st.booleans(),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), SHAPES),
        st.tuples(st.just("ask"), SHAPES),
        st.tuples(st.just("add"), SHAPES),
        st.tuples(st.just("go"), st.integers(0, 30)),
        st.tuples(st.just("change"), st.integers(0, 30), SHAPES),
        st.tuples(st.just("later"), st.floats(0, 8)),
    ),
    min_size=8,
    max_size=30,
)


@given(STEPS, st.sampled_from([0, 0, 3]), st.booleans(), st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_the_shortcut_decides_as_a_plan_for_each_would(
    steps: list[Any], limit: int, busy: bool, loads: int
) -> None:
    async def run() -> None:
        live = {
            "lru_eviction_max_retries": 10**6,
            "starvation_bound": 10,
            "max_active_backends": limit,
            "force_eviction_when_busy": busy,
            "parallel_loads": loads,
        }
        rooms = [Room(shortcut=shortcut, live=live) for shortcut in (True, False)]
        for number, (what, *how) in enumerate(steps):
            for room in rooms:
                if what == "ask":
                    room.ask(f"w{number}", how[0])
                elif what == "add":
                    room.add(f"o{number}", how[0])
                elif what == "later":
                    room.now += how[0]
                elif room.models:
                    name = list(room.models)[how[0] % len(room.models)]
                    if what == "go":
                        del room.models[name]
                    else:
                        room.models[name].there = replace(how[1], name=name)
                room.look()
            assert rooms[0].log == rooms[1].log
        for room in rooms:
            for wish in room.scheduler.queue:
                room.scheduler.withdraw(wish.name)

    asyncio.run(run())
