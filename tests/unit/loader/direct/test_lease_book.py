"""The leases of direct clients: a lease is in force exactly as long as it holds its instance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.common.errors import (
    CorralError,
    InvalidRequestError,
    LeaseNotFoundError,
    ModelUnloadedError,
    TooManyLeasesError,
)
from services.loader.backends.catalog import Backend
from services.loader.direct.lease_book import DirectLease, LeaseBook, LeaseLimits
from services.loader.direct.resolver import Advice, Resolution, Resolutions
from services.loader.instances.instance import Instance, Lease
from services.loader.lifecycle.events import Cause, StopReason
from services.loader.lifecycle.state import Phase
from services.loader.models.catalog import ModelEntry
from services.loader.models.config import ModelConfig
from tests.tools.scripted_world import World
from tests.unit.loader.supervision.test_supervisor import comes_up, entry, goes, phase

LIMITS = LeaseLimits(default=30.0, maximum=100.0, most=4)


def instance(name: str = "m") -> Instance:
    found = ModelEntry(name, ModelConfig.model_validate({"name": name}))
    return Instance("uid", 1, name, Backend("b"), found, time.time())


class Machine(RuleBasedStateMachine):
    """Clients that take, renew, release and forget leases, in any order, while time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.now = 0.0
        self.book = LeaseBook(LIMITS, lambda: self.now)
        self.instance = self._made()
        self.given: list[DirectLease] = []
        self.until: dict[str, float | None] = {}
        """The leases that must be in force, and when each expires."""
        self.ended: list[str] = []
        self.releases = 0

    def _made(self) -> Instance:
        async def make() -> Instance:
            return instance()

        return self.loop.run_until_complete(make())

    def _released(self, instance: Instance) -> None:
        self.releases += 1

    def _hold(self) -> Lease:
        return Lease(self.instance, self._released)

    @rule(duration=st.none() | st.floats(-1, 200))
    def grant(self, duration: float | None) -> None:
        hold = self._hold()
        try:
            lease = self.book.grant("m", hold, duration)
        except TooManyLeasesError:
            assert len(self.until) == LIMITS.most
            hold.release()
        except InvalidRequestError:
            assert duration is not None and duration <= 0
            hold.release()
        else:
            self.given.append(lease)
            self.until[lease.key] = self.now + min(30.0 if duration is None else duration, 100.0)

    @rule()
    def attach(self) -> None:
        hold = self._hold()
        try:
            lease = self.book.attach("m", hold, lambda: self.ended.append("one"))
        except TooManyLeasesError:
            hold.release()
        else:
            self.given.append(lease)
            self.until[lease.key] = None

    @precondition(lambda self: self.given)
    @rule(which=st.integers(0), duration=st.none() | st.floats(1, 200))
    def renew(self, which: int, duration: float | None) -> None:
        lease = self.given[which % len(self.given)]
        try:
            assert self.book.renew("m", lease.key, duration) is lease
        except LeaseNotFoundError:
            until = self.until.get(lease.key, 0.0)
            assert self.instance.ended.done() or (until is not None and until <= self.now)
        else:
            if self.until[lease.key] is not None:
                self.until[lease.key] = self.now + min(duration or 30.0, 100.0)

    @precondition(lambda self: self.given)
    @rule(which=st.integers(0), quietly=st.booleans())
    def release(self, which: int, quietly: bool) -> None:
        lease = self.given[which % len(self.given)]
        (self.book.forget if quietly else self.book.release)(lease.key)
        self.until.pop(lease.key, None)

    @rule(seconds=st.floats(0, 60))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.book.expire()

    @rule()
    def instance_ends(self) -> None:
        self.instance.end(ModelUnloadedError("gone"))

    @invariant()
    def what_is_in_force_holds_and_nothing_else(self) -> None:
        # `renew` may have expired leases already; expire them in any case.
        self.book.expire()
        self.until = {k: t for k, t in self.until.items() if t is None or t > self.now}
        assert {lease.key for lease in self.book.leases()} == set(self.until)
        assert self.instance.calls.holds == self.instance.calls.direct == len(self.until)
        assert len(self.instance.leases) == len(self.until)
        assert self.instance.calls.active == 0
        assert self.instance.calls.total == len(self.given)
        times = [time for time in self.until.values() if time is not None]
        assert self.book.next_expiry() == min(times, default=None)

    def teardown(self) -> None:
        self.book.close()
        assert self.instance.calls.holds == self.instance.calls.direct == 0
        self.loop.close()
        asyncio.set_event_loop(None)


TestLeases = Machine.TestCase


async def test_a_lease_is_for_its_model_only() -> None:
    book = LeaseBook(LIMITS, lambda: 0.0)
    lease = book.grant("alias", Lease(instance(), lambda _: None), None)
    assert book.renew("alias", lease.key, None) is book.renew("m", lease.key, None)
    with pytest.raises(InvalidRequestError, match="is for model 'alias'"):
        book.renew("other", lease.key, None)
    with pytest.raises(LeaseNotFoundError):
        book.renew("m", "made up", None)


# With supervisors and a scheduler


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.tasks.close()


class Models:
    """The loader as direct clients see it, with the supervisors of a small world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.wants = ""

    async def hold(self, name: str) -> Lease:
        return await self.world.supervisors[name].loads.acquire(entry(name), ("x",), calls=False)

    def draining(self, instance: Instance) -> str:
        state = self.world.supervisors[instance.model].state
        return state.message if state.phase is Phase.DRAINING else ""

    def wanting_room(self) -> str:
        return self.wants

    def listen(self, listener: object) -> None:
        self.tell = listener


UNLOAD = StopReason(Cause.REQUESTED, "unloaded on request")


async def ready(world: World) -> tuple[Models, Resolutions, Resolution]:
    models = Models(world)
    resolutions = Resolutions(models, LIMITS)
    asked = asyncio.create_task(resolutions.resolve("a", lease="", duration=None))
    await comes_up(world, "a")
    return models, resolutions, await asked


async def test_an_unload_waits_for_leases(world: World) -> None:
    _, resolutions, first = await ready(world)
    second = await resolutions.resolve("a", lease="", duration=50)
    supervisor = world.supervisors["a"]
    stop = asyncio.create_task(supervisor.stop(UNLOAD, force=False))
    await phase(supervisor, Phase.DRAINING)
    again = await resolutions.resolve("a", lease=first.lease, duration=None)
    assert (again.advice, again.why) == (Advice.MOVE, UNLOAD.text)
    waits = asyncio.create_task(resolutions.resolve("a", lease="", duration=None))
    resolutions.release(first.lease)
    resolutions.release(first.lease)
    assert supervisor.state.phase is Phase.DRAINING
    resolutions.release(second.lease)
    await goes(world, "a")
    await stop
    # The request made during the drain gets the next instance.
    await comes_up(world, "a")
    assert (await waits).instance.generation > first.instance.generation
    resolutions.close()


async def test_a_forced_unload_does_not_wait(world: World) -> None:
    _, resolutions, first = await ready(world)
    held = resolutions.hold("a")
    assert (await anext(held)).expires is None
    stop = asyncio.create_task(world.supervisors["a"].stop(UNLOAD, force=True))
    with pytest.raises(ModelUnloadedError):
        await anext(held)
    with pytest.raises(LeaseNotFoundError):
        await resolutions.resolve("a", lease=first.lease, duration=None)
    await goes(world, "a")
    await stop
    resolutions.close()


async def test_the_advice_changes_under_a_stream(world: World) -> None:
    models, resolutions, first = await ready(world)
    resolutions.release(first.lease)
    held = resolutions.hold("a")
    assert (await anext(held)).advice is Advice.KEEP
    models.wants = "model 'b' waits for room"
    models.tell("b", None)  # type: ignore[operator]
    assert (await anext(held)).advice is Advice.YIELD
    models.wants = ""
    models.tell("b", None)  # type: ignore[operator]
    assert (await anext(held)).advice is Advice.KEEP
    await held.aclose()
    assert world.supervisors["a"].instance.calls.holds == 0  # type: ignore[union-attr]
    resolutions.close()


async def test_releasing_a_streams_lease_ends_it(world: World) -> None:
    _, resolutions, _ = await ready(world)
    held = resolutions.hold("a")
    lease = (await anext(held)).lease
    resolutions.release(lease)
    with pytest.raises(StopAsyncIteration):
        await anext(held)
    held = resolutions.hold("a")
    await anext(held)
    resolutions.close()
    with pytest.raises(StopAsyncIteration):
        await anext(held)


async def test_a_client_that_leaves_while_it_loads_holds_nothing(world: World) -> None:
    models = Models(world)
    resolutions = Resolutions(models, LIMITS)
    held = resolutions.hold("a")
    asked = asyncio.ensure_future(anext(held))
    await phase(world.supervisors["a"], Phase.STARTING)
    asked.cancel()
    with suppress(asyncio.CancelledError):
        await asked
    await comes_up(world, "a")
    assert world.supervisors["a"].instance.calls.holds == 0  # type: ignore[union-attr]


async def test_a_bad_duration_loads_nothing(world: World) -> None:
    resolutions = Resolutions(Models(world), LIMITS)
    with pytest.raises(CorralError, match="lease_duration"):
        await resolutions.resolve("a", lease="", duration=0.0)
    assert world.supervisors["a"].state.phase is Phase.STOPPED
