"""Property tests of eviction plans: no model is evicted needlessly, and none that must stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.loader.scheduling.eviction import (
    BlockedRequests,
    EvictionMode,
    Limits,
    Newcomer,
    Occupant,
    Plan,
    first_to_go,
    plan,
    worth_evicting,
)

GIB = 1024**3
DEVICES = ("ram", "gpu0")
MEMORY = st.dictionaries(st.sampled_from(DEVICES), st.integers(0, 8 * GIB))
GROUPS = st.frozensets(st.sampled_from(["g", "h"]), max_size=2)
SECONDS = st.floats(0, 100, allow_nan=False)


@st.composite
def occupants(draw: st.DrawFn) -> list[Occupant]:
    found = []
    for name in draw(st.lists(st.sampled_from("abcdef"), unique=True)):
        settled = draw(st.booleans())
        found.append(
            Occupant(
                name,
                settled=settled,
                leaving=not settled and draw(st.booleans()),
                busy=draw(st.booleans()),
                pinned=draw(st.booleans()),
                counts=draw(st.booleans()),
                groups=draw(GROUPS),
                memory=draw(MEMORY),
                idle=draw(SECONDS),
                residence=draw(SECONDS),
                came_back=draw(st.booleans()),
                load_seconds=draw(SECONDS),
                in_demand=draw(st.booleans()),
            )
        )
    return found


NEWCOMERS = st.builds(
    Newcomer,
    st.sampled_from(["a", "new"]),
    st.booleans(),
    GROUPS,
    MEMORY,
    st.sampled_from([0.0, 5.0, 20.0]),
)
LIMITS = st.builds(Limits, st.integers(0, 4), st.booleans(), st.booleans(), st.just(10.0))
FREE = st.dictionaries(st.sampled_from(DEVICES), st.integers(-GIB, 10 * GIB))


def fits(
    newcomer: Newcomer, there: list[Occupant], limits: Limits, free: dict[str, int], gone: set[str]
) -> bool:
    """The rules again, in their simplest form."""
    others = [each for each in there if each.name not in gone | {newcomer.name}]
    if any(each.groups & newcomer.groups for each in others):
        return False
    if limits.active and sum(e.counts for e in others) + newcomer.counts > limits.active:
        return False
    back = [each for each in there if each.name in gone - {newcomer.name}]
    return all(
        need <= free[device] + sum(each.memory.get(device, 0) for each in back)
        for device, need in newcomer.memory.items()
        if device in free
    )


@settings(max_examples=400)
@given(NEWCOMERS, occupants(), LIMITS, FREE)
def test_plans_keep_the_rules(
    newcomer: Newcomer, there: list[Occupant], limits: Limits, free: dict[str, int]
) -> None:
    found = plan(newcomer, there, limits, free)
    by_name = {each.name: each for each in there}
    leaving = {each.name for each in there if each.leaving}
    victims = {victim.name for victim in found.victims}

    assert found.fits == fits(newcomer, there, limits, free, set())
    assert not (found.fits and victims), "no model is evicted if the new one fits"
    if fits(newcomer, there, limits, free, leaving):
        assert not victims, "no other model is evicted if those leaving free enough"
    for victim in found.victims:
        occupant = by_name[victim.name]
        assert occupant.settled and not occupant.leaving, (
            "a model that is starting or leaving is left alone"
        )
        assert not occupant.pinned
        assert victim.name != newcomer.name
        assert occupant.busy == (victim.way is not EvictionMode.IDLE)
        if victim.way is EvictionMode.FORCE:
            assert limits.evict_busy
        if victim.way is EvictionMode.DRAIN:
            assert newcomer.waited >= limits.starvation_bound and not limits.evict_busy
    if victims:
        assert fits(newcomer, there, limits, free, leaving | victims), "the evictions free enough"
        for name in victims:
            assert not fits(newcomer, there, limits, free, leaving | victims - {name}), (
                f"{name} is evicted needlessly"
            )
    if not found.possible:
        unpinned = {each.name for each in there if not each.pinned}
        assert not fits(newcomer, there, limits, free, unpinned)
    if not (found.fits or victims):
        assert found.lacking or not found.possible


@settings(max_examples=400)
@given(NEWCOMERS, NEWCOMERS, occupants(), occupants(), LIMITS, FREE)
def test_who_needs_as_much_as_one_that_is_blocked_need_not_be_planned_for(
    first: Newcomer,
    second: Newcomer,
    there: list[Occupant],
    more: list[Occupant],
    limits: Limits,
    free: dict[str, int],
) -> None:
    first, second = replace(first, name="first"), replace(second, name="second")
    blocked = BlockedRequests()
    if plan(first, there, limits, free).blocked:
        blocked.add(first, limits.starvation_bound)
        assert blocked.covers(replace(first, name="again"), limits.starvation_bound)
    if blocked.covers(second, limits.starvation_bound):
        claims = [replace(each, name=f"claim {each.name}", settled=False) for each in more]
        claims = [replace(each, leaving=False) for each in claims]
        for claim in claims:
            free = {device: left - claim.memory.get(device, 0) for device, left in free.items()}
        found = plan(second, [*there, *claims], limits, free)
        assert not found.fits and not found.victims


def idle(name: str, seconds: float, size: int = 0, cost: float = 0.5, **more: Any) -> Occupant:
    return Occupant(
        name, idle=seconds, memory={"ram": size}, load_seconds=cost, residence=1000.0, **more
    )


def victims(found: Plan) -> list[str]:
    return [victim.name for victim in found.victims]


def test_among_equals_the_least_recently_used_goes() -> None:
    there = [idle("a", 5), idle("b", 50), idle("c", 20)]
    assert victims(plan(Newcomer("new"), there, Limits(active=3), {})) == ["b"]


def test_what_is_quick_to_load_goes_before_what_is_slow() -> None:
    there = [idle("slow", 50, GIB, cost=60), idle("quick", 40, GIB, cost=2)]
    assert victims(plan(Newcomer("new"), there, Limits(active=2), {})) == ["quick"]


def test_small_differences_of_small_models_are_chance() -> None:
    assert worth_evicting(idle("a", 10, 90 * 1024**2, 0.1)) == worth_evicting(
        idle("b", 10, 95 * 1024**2, 0.9)
    )


def test_size_aware_takes_the_largest() -> None:
    there = [idle("old", 500, GIB), idle("large", 1, 3 * GIB)]
    limits = Limits(active=2, largest_first=True)
    assert victims(plan(Newcomer("new"), there, limits, {})) == ["large"]


def test_one_large_is_better_than_many_small() -> None:
    there = [idle("s1", 90, GIB), idle("s2", 80, GIB), idle("large", 10, 6 * GIB)]
    need = Newcomer("new", memory={"ram": 5 * GIB})
    assert victims(plan(need, there, Limits(), {"ram": 0})) == ["large"]


def test_a_group_goes_whole() -> None:
    group = frozenset({"vision"})
    there = [idle("a", 1, groups=group), idle("b", 2, groups=group), idle("c", 99)]
    assert sorted(victims(plan(Newcomer("new", groups=group), there, Limits(), {}))) == ["a", "b"]


def test_a_model_that_came_back_is_kept_for_as_long_as_its_load_took_but_not_for_ever() -> None:
    limits = Limits(active=1, starvation_bound=10.0)
    for busy in (False, True):
        hot = Occupant("hot", came_back=True, in_demand=True, busy=busy, load_seconds=5.0)
        for waited in (0.0, 11.0):
            kept = plan(Newcomer("new", waited=waited), [replace(hot, residence=4.9)], limits, {})
            assert not kept.victims and kept.possible and kept.blockers[0].temporary
        newcomer = Newcomer("new", waited=11.0)
        assert victims(plan(newcomer, [replace(hot, residence=5.0)], limits, {})) == ["hot"]
        slow = replace(hot, load_seconds=500.0, residence=10.0)
        assert victims(plan(newcomer, [slow], limits, {})) == ["hot"], "the bound applies"
    cold = Occupant("cold", came_back=True, residence=1.0, load_seconds=5.0)
    assert victims(plan(Newcomer("new"), [cold], limits, {})) == ["cold"], "no call needs it"


def test_busy_ones_are_drained_only_for_those_who_have_waited_too_long() -> None:
    busy = Occupant("busy", busy=True)
    limits = Limits(active=1, starvation_bound=10.0)
    assert not plan(Newcomer("new"), [busy], limits, {}).victims
    drained = plan(Newcomer("new", waited=11.0), [busy], limits, {})
    assert drained.victims[0].way is EvictionMode.DRAIN


def test_what_can_never_fit_is_told() -> None:
    found = plan(
        Newcomer("new", memory={"ram": 9 * GIB}), [idle("a", 1, GIB)], Limits(), {"ram": GIB}
    )
    assert not found.possible and "9" in found.lacking and "ram" in found.lacking
    pinned = Occupant("p", pinned=True)
    assert not plan(Newcomer("new"), [pinned], Limits(active=1), {}).possible


def test_the_reclaimer_takes_idle_ones_with_memory_there() -> None:
    there = [
        idle("old", 100),
        idle("here", 10, GIB),
        idle("pinned", 500, GIB, pinned=True),
        idle("busy", 900, GIB, busy=True),
    ]
    first = first_to_go(there, Limits(), "ram")
    assert first is not None and first.name == "here"
    assert first_to_go(there, Limits(), "gpu0") is None
