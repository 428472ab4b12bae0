"""The real supervisors and the real scheduler, with processes that the test drives in random order.

Each rule is an event in the world; after each, the world settles and is checked. The rules do not
state what is forbidden: the invariants of the architecture do.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from services.common.errors import CorralError, LoadBackoffError
from services.loader.instances.instance import Lease, LoadAnswer
from services.loader.lifecycle.events import BackoffEnded, Cause, StopReason
from services.loader.lifecycle.state import RESTING, Phase
from services.loader.models.catalog import ModelEntry
from services.loader.models.config import ModelConfig
from services.loader.processes.interface import Exit
from tests.tools.scripted_world import GROUPS, NAMES, Process, World

MODELS = st.sampled_from(NAMES)


class Scheduling(RuleBasedStateMachine):
    """The events that may happen."""

    calls = Bundle("calls")

    @initialize(limit=st.integers(0, 2), loads=st.integers(1, 3))
    def begin(self, limit: int, loads: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.waiting: list[asyncio.Task[Lease]] = []
        self.leases: list[Lease] = []
        self.revisions: dict[str, int] = {}

        async def make() -> World:
            return World()

        self.world = self.loop.run_until_complete(make())
        self.do(
            lambda: self.world.live.update({"max_active_backends": limit, "parallel_loads": loads})
        )

    def do(self, action: Any) -> Any:
        async def act() -> Any:
            result = action()
            await self.settle()
            return result

        return self.loop.run_until_complete(act())

    async def settle(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)
        while asking := [t for t in self.world.tasks._tasks if t.get_name().startswith("ask room")]:
            await asyncio.wait(asking)
            for _ in range(12):
                await asyncio.sleep(0)
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.leases.append(task.result())
            elif not task.cancelled():
                assert isinstance(task.exception(), CorralError), task.exception()

    def entry(self, name: str) -> ModelEntry:
        config = ModelConfig.model_validate(
            {
                "name": name,
                "concurrency_groups": GROUPS.get(name, []),
                "limits": {"max_concurrent": 2 if name == "c" else 0},
            }
        )
        return ModelEntry(name, config, revision=str(self.revisions.get(name, 0)))

    # Clients

    @rule(name=MODELS, both=st.booleans())
    def call(self, name: str, both: bool) -> None:
        candidates = ("x", "y") if both else ("x",)

        async def acquire() -> Lease:
            self.world.meter.check()
            return await self.world.supervisors[name].loads.acquire(
                self.entry(name), candidates, calls=True
            )

        def begin() -> None:
            self.waiting.append(asyncio.get_running_loop().create_task(acquire()))

        self.do(begin)

    @rule(which=st.integers(0, 20))
    def leave(self, which: int) -> None:
        if self.waiting:
            self.do(self.waiting[which % len(self.waiting)].cancel)

    @rule(which=st.integers(0, 20))
    def end(self, which: int) -> None:
        if self.leases:
            self.do(self.leases.pop(which % len(self.leases)).release)

    @rule(name=MODELS, force=st.booleans())
    def unload(self, name: str, force: bool) -> None:
        supervisor = self.world.supervisors[name]
        if force or supervisor.state.phase is not Phase.READY:
            self.world.allowed.add(name)
        reason = StopReason(Cause.REQUESTED, "asked")
        self.do(lambda: self.world.tasks.spawn(supervisor.stop(reason, force=force), name="unload"))

    @rule(name=MODELS)
    def load_now(self, name: str) -> None:
        """Start a load without a call, and with no caller waiting for it."""

        def begin() -> None:
            supervisor = self.world.supervisors[name]
            supervisor.reset()
            supervisor.loads.begin(self.entry(name), ("x", "y"))

        self.do(begin)

    @rule(name=MODELS)
    def wait_for_load(self, name: str) -> None:
        """Start a load for a caller that waits for it but makes no call."""
        waiting = self.world.supervisors[name].loads.acquire(self.entry(name), ("x",), calls=False)

        def begin() -> None:
            self.waiting.append(asyncio.get_running_loop().create_task(waiting))

        self.do(begin)

    @rule(name=MODELS)
    def reset(self, name: str) -> None:
        self.do(self.world.supervisors[name].reset)

    @rule(name=MODELS)
    def probe(self, name: str) -> None:
        if lease := self.world.supervisors[name].leases.probe():
            self.do(lease.release)

    @rule(name=MODELS)
    def reconfigure(self, name: str) -> None:
        """Change the model's configuration, for the follower and the next call to see."""
        self.revisions[name] = self.revisions.get(name, 0) + 1
        supervisor = self.world.supervisors[name]
        self.do(lambda: supervisor.configuration_changed(str(self.revisions[name])))

    @rule(loads=st.integers(1, 3), fit_check=st.booleans(), impatient=st.booleans())
    def change_settings(self, loads: int, fit_check: bool, impatient: bool) -> None:
        values = {
            "parallel_loads": loads,
            "fit_check": fit_check,
            "starvation_bound": 0 if impatient else 1000,
        }
        self.do(lambda: self.world.live.update(values))

    @rule(name=MODELS)
    def look_of_the_watchdog(self, name: str) -> None:
        """The watchdog stops an idle model, and nothing else."""
        supervisor = self.world.supervisors[name]
        occupant = supervisor.occupancy()
        if occupant and occupant.settled and not occupant.busy and not occupant.pinned:
            self.do(lambda: supervisor.evict(StopReason(Cause.IDLE, "idle"), force=False))

    @rule(limit=st.integers(0, 3))
    def change_limit(self, limit: int) -> None:
        self.do(lambda: self.world.live.update({"max_active_backends": limit}))

    # Processes

    def process(self, name: str) -> Process | None:
        return self.world.processes.get(name)

    @rule(name=MODELS, well=st.booleans())
    def answer(self, name: str, well: bool) -> None:
        process = self.process(name)
        if process and not process.started.done():
            self.do(lambda: _settle(process.started, well))

    @rule(name=MODELS, well=st.sampled_from(["yes", "no", "memory"]))
    def load(self, name: str, well: str) -> None:
        process = self.process(name)
        if process and process.started.done() and not process.loaded.done():
            text = {"yes": "", "no": "bad file", "memory": "out of memory"}[well]
            self.do(lambda: process.loaded.set_result(LoadAnswer(not text, text)))

    @rule(name=MODELS)
    def crash(self, name: str) -> None:
        process = self.process(name)
        if process and process.loaded.done() and not process.exit.done():
            self.do(lambda: process.exit.set_result(Exit(code=1)))

    @rule(name=MODELS)
    def group_gone(self, name: str) -> None:
        process = self.process(name)
        phase = self.world.supervisors[name].state.phase
        if process and phase is Phase.STOPPING and not process.gone.done():
            self.do(lambda: process.gone.set_result(None))
            if name not in self.world.processes:
                self.world.allowed.discard(name)

    @rule(name=MODELS)
    def backoff_ends(self, name: str) -> None:
        supervisor = self.world.supervisors[name]

        def end() -> None:
            supervisor.backoffs.disarm()
            supervisor._post(BackoffEnded("x"))

        self.do(end)

    # What must hold

    @invariant()
    def nothing_forbidden_happened(self) -> None:
        if hasattr(self, "world"):
            assert not self.world.wrong, self.world.wrong

    @invariant()
    def the_counts_are_right(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        active = sum(s.instance.calls.active for s in world.supervisors.values() if s.instance)
        held = sum(lease.used and lease.instance.stopping for lease in self.leases)
        assert world.meter.running == len([lease for lease in self.leases if lease.used])
        assert active <= world.meter.running and active + held >= world.meter.running
        assert world.meter.waiting == sum(s.leases.calls for s in world.supervisors.values())
        assert world.meter.waiting <= len(self.waiting)
        assert world.meter.total <= 10

    @invariant()
    def the_limits_hold(self) -> None:
        if not hasattr(self, "world"):
            return
        third = self.world.supervisors["c"].instance
        assert third is None or third.calls.active <= 2
        for supervisor in self.world.supervisors.values():
            waits = self.world.scheduler.position(supervisor.name) > 0
            assert not waits or supervisor.state.phase is Phase.WAITING

    @invariant()
    def whoever_waits_has_something_to_wait_for(self) -> None:
        if hasattr(self, "world"):
            for supervisor in self.world.supervisors.values():
                if supervisor.leases.calls:
                    assert supervisor.state.phase not in RESTING

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.loop.run_until_complete(self.finish())
            self.loop.close()

    async def finish(self) -> None:
        """Let everything succeed from now on: then no call may be left waiting."""
        self.world.live.update({"max_active_backends": 0, "starvation_bound": 1000})
        for _ in range(60):
            for lease in self.leases:
                lease.release()
            self.leases.clear()
            for name, process in list(self.world.processes.items()):
                _settle(process.started, True)
                if process.started.done() and not process.loaded.done():
                    process.loaded.set_result(LoadAnswer(True, ""))
                if self.world.supervisors[name].state.phase is Phase.STOPPING:
                    _settle(process.gone, True)
            await self.settle()
            if not self.waiting and not self.leases:
                break
            if self.waiting:  # a model in demand stays loaded for a short real time
                await asyncio.wait(self.waiting, timeout=0.02)
        left = [(s.name, s.state.phase, s.leases.calls) for s in self.world.supervisors.values()]
        assert not self.waiting, f"calls wait forever: {left}"
        for supervisor in self.world.supervisors.values():
            self.world.allowed.add(supervisor.name)
        stops = [
            asyncio.ensure_future(s.stop(StopReason(Cause.SHUTDOWN, "end"), force=True))
            for s in self.world.supervisors.values()
        ]
        for _ in range(20):
            for process in list(self.world.processes.values()):
                _settle(process.gone, True)
            await self.settle()
        await asyncio.wait_for(asyncio.gather(*stops), 5)
        assert not self.world.processes
        assert self.world.meter.total == 0
        await self.world.tasks.close()


def _settle(future: asyncio.Future[None], well: bool) -> None:
    if future.done():
        return
    if well:
        future.set_result(None)
    else:
        future.set_exception(LoadBackoffError("cannot start"))


def test_the_invariants_hold_in_any_order() -> None:
    run_state_machine_as_test(
        Scheduling, settings=settings(max_examples=150, stateful_step_count=40, deadline=None)
    )
