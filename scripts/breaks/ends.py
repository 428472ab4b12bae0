"""Invariants 8 to 12: ends, deaths, changes, and that nobody is held up or left hanging."""

from __future__ import annotations

from .change import (
    ADOPTION,
    HEAD,
    LIMITS,
    LIVES,
    LOADER,
    ORPHANS,
    PROCESS,
    PROMISES,
    RELEASE,
    V2,
    Break,
)

BREAKS = (
    Break(
        8,
        "an unload is answered before the group is gone",
        f"{LOADER}/supervisor.py",
        "        if isinstance(event, life.GroupGone) and before.phase is Phase.STOPPING:\n"
        "            self._stops",
        "        if self.state.phase is Phase.STOPPING:\n            self._stops",
        f"{LIVES}::test_a_backend_that_ignores_sigterm_is_killed",
    ),
    Break(
        8,
        "only the first process is ended, not its group and those that left it",
        f"{LOADER}/process_group.py",
        "            members = self._members()\n",
        "            members = []\n",
        f"{LIVES}::test_unload_ends_helpers_and_those_that_escaped",
    ),
    Break(
        8,
        "the memory of what has ended is taken for free at once",
        f"{LOADER}/runner.py",
        "            await self._released(instance)\n",
        "            pass\n",
        f"{RELEASE}::test_an_unload_ends_after_the_release",
    ),
    Break(
        8,
        "a driver that still holds memory is not waited for",
        f"{LOADER}/ledger.py",
        "            await wait_until(free, timeout=self._release_timeout",
        "            await wait_until(lambda: True, timeout=self._release_timeout",
        f"{RELEASE}::test_the_memory_of_a_gpu_is_waited_for",
    ),
    Break(
        9,
        "the guard is not told of a group",
        f"{LOADER}/local_process.py",
        "        self._around.watch.add(child.pid, spec.uid)\n",
        "",
        f"{PROMISES}::test_9_a_backend_that_drops_its_environment_ends_with_the_loader",
    ),
    Break(
        9,
        "backends do not bear the loader's marker",
        f"{LOADER}/environment.py",
        "    environment[name] = value\n",
        "",
        f"{ORPHANS}::test_an_orphan_that_nobody_recorded_is_found_by_its_marker",
    ),
    Break(
        9,
        "the guard forgets those that left their group",
        f"{LOADER}/guard.py",
        "        found = len(groups) + kill_marked(markers, left)\n",
        "        found = len(groups)\n",
        f"{LIVES}::test_sigkill_of_the_loader_leaves_no_backend",
    ),
    Break(
        9,
        "a dead guard is not replaced",
        f"{LOADER}/guarding.py",
        "        if self._short_lives < _SHORT_LIVES:\n            self._start()\n",
        "        if self._short_lives < _SHORT_LIVES:\n            pass\n",
        f"{PROCESS}::test_a_dead_guard_is_replaced_though_nothing_happens",
    ),
    Break(
        9,
        "what an earlier loader left is taken over, and then loaded anew",
        f"{LOADER}/adoption.py",
        'revision=record.model_revision if same else "")',
        'revision="")',
        f"{ADOPTION}::test_a_killed_loaders_backend_is_taken_over",
    ),
    Break(
        9,
        "adoption is on, and the guard is not told to keep what is ready",
        f"{LOADER}/process_group.py",
        "        self._around.watch.keep(self._pid, self._uid)\n",
        "",
        f"{ADOPTION}::test_a_killed_loaders_backend_is_taken_over",
    ),
    Break(
        9,
        "what an earlier loader left is neither taken over nor ended",
        f"{LOADER}/leftovers.py",
        "            found = find_marked(markers, spared=left)\n",
        "            found = find_marked(set(), spared=left)\n",
        f"{ORPHANS}::test_an_orphan_that_nobody_recorded_is_found_by_its_marker",
    ),
    Break(
        10,
        "a loaded model keeps its old configuration",
        f"{LOADER}/supervisor.py",
        "            self.instance.outdated = self.instance.entry.revision != revision\n",
        "            self.instance.outdated = False\n",
        f"{LIVES}::test_models_that_come_change_and_go",
    ),
    Break(
        10,
        "a new configuration cuts the calls of the old one",
        f"{LOADER}/supervisor.py",
        "        if stale and not instance.holds and self.state.phase is Phase.READY:\n",
        "        if stale and self.state.phase is Phase.READY:\n"
        '            self._stop(StopReason(Cause.CHANGED, "changed"), force=True)\n'
        "        if stale and not instance.holds and self.state.phase is Phase.READY:\n",
        f"{PROCESS}::test_a_busy_model_takes_its_new_configuration_when_it_can",
    ),
    Break(
        10,
        "any change in the folder is one of all models",
        f"{LOADER}/loader.py",
        "        if supervisor := self._supervisors.get(name):\n"
        "            supervisor.configuration_is(revision)\n",
        "        for supervisor in self._supervisors.values():\n"
        "            supervisor.configuration_is(revision)\n",
        f"{PROMISES}::test_10_a_changed_configuration_disturbs_nobody_else",
    ),
    Break(
        11,
        "the loop itself waits for the end of a process",
        f"{LOADER}/process_group.py",
        "        await asyncio.wait([self._exit], timeout=timeout)\n",
        "        while self._group() and time.monotonic() - began < timeout:\n"
        "            time.sleep(0.01)\n"
        "        await asyncio.wait([self._exit], timeout=timeout)\n",
        f"{PROMISES}::test_11_nothing_that_happens_to_one_model_delays_anothers_calls",
    ),
    Break(
        11,
        "one model may load at a time, unless somebody allows more",
        f"{LOADER}/tunables.py",
        "    parallel_loads: int = Field(default=8, ge=1)\n",
        "    parallel_loads: int = Field(default=1, ge=1)\n",
        f"{V2}::test_v2_01_one_slow_load_does_not_stall_other_models",
    ),
    Break(
        11,
        "a model's file is read on the loop before its load",
        f"{LOADER}/runner.py",
        "        assert instance.connection is not None\n        limit =",
        "        assert instance.connection is not None\n"
        "        time.sleep(1.5)  # as long as some gigabytes take\n"
        "        limit =",
        f"{PROMISES}::test_11_nothing_that_happens_to_one_model_delays_anothers_calls",
    ),
    Break(
        12,
        "the queue has no bound",
        f"{LOADER}/supervisor.py",
        "        if calls and self._waiters.calls >= self._services.queue_size():\n",
        "        if calls and self._waiters.calls >= 1_000_000:\n",
        f"{HEAD}::test_head_07_a_full_queue_stays_that_and_is_no_failure_of_the_load",
    ),
    Break(
        12,
        "there is no ceiling over all models",
        f"{LOADER}/admission.py",
        "        if self.total >= self.ceiling():\n",
        "        if self.running >= 1_000_000:\n",
        f"{LIMITS}::test_the_ceiling_over_all_models",
    ),
    Break(
        12,
        "who is refused is not told when to come back",
        f"{LOADER}/causes.py",
        '        retry_after=retry_after,\n        metadata={"model": model, "queue_length"',
        '        metadata={"model": model, "queue_length"',
        f"{LIMITS}::test_calls_at_once_and_the_queue",
    ),
    Break(
        12,
        "who is refused is not told how many wait",
        f"{LOADER}/causes.py",
        '        metadata={"model": model, "queue_length": str(waiting)},\n',
        '        metadata={"model": model},\n',
        f"{LIMITS}::test_calls_at_once_and_the_queue",
    ),
)
