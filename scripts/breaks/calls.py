"""Invariants 1 to 7: loads, waiting and running calls, failures and their consequences."""

from __future__ import annotations

from .change import (
    ADMITS,
    DIRECT,
    FAILURES,
    HEAD,
    LEASES,
    LIFE,
    LIMITS,
    LIVES,
    LOADER,
    PLANS,
    PROMISES,
    V2,
    WAITERS,
    Break,
)

BREAKS = (
    Break(
        1,
        "each call to a model that is not ready starts a process",
        f"{LOADER}/lifecycle/machine.py",
        "    if state.phase in RESTING and candidates:\n        return _ask(state, candidates)",
        "    if state.phase is not Phase.READY and candidates:\n        return _ask(state, candidates)",
        f"{LIFE}::test_a_process_is_started_only_when_none_is_there",
    ),
    Break(
        1,
        "the same, with real processes",
        f"{LOADER}/lifecycle/machine.py",
        "    if state.phase in RESTING and candidates:\n        return _ask(state, candidates)",
        "    if state.phase is not Phase.READY and candidates:\n        return _ask(state, candidates)",
        f"{V2}::test_v2_02_two_first_calls_start_one_process",
    ),
    Break(
        1,
        "loads run one after the other",
        f"{LOADER}/scheduling/scheduler.py",
        "if loads >= settings.parallel_loads:",
        "if loads:",
        f"{LIVES}::test_models_load_side_by_side",
    ),
    Break(
        2,
        "a caller that leaves stops the load",
        f"{LOADER}/supervision/load_requests.py",
        "        self._post(events.LoadRequested(usable))\n        return await joining\n",
        "        self._post(events.LoadRequested(usable))\n"
        "        try:\n"
        "            return await joining\n"
        "        except BaseException:\n"
        '            reason = events.StopReason(events.Cause.REQUESTED, "no caller waits")\n'
        "            self._post(events.StopRequested(reason, True))\n"
        "            raise\n",
        f"{HEAD}::test_head_05_the_first_caller_may_leave",
    ),
    Break(
        2,
        "a load is cancelled when no caller waits for it any more",
        f"{LOADER}/admission/waiters.py",
        "            waited = self.withdraw(waiter)\n",
        "            waited = self.withdraw(waiter)\n"
        "            for other in self._calls:\n"
        "                other.lease.cancel()\n",
        f"{HEAD}::test_head_05_the_first_caller_may_leave",
    ),
    Break(
        2,
        "a caller that leaves at the moment it is served keeps its lease",
        f"{LOADER}/admission/waiters.py",
        "waiter.lease.result().release()",
        "waiter.lease.result()",
        f"{WAITERS}::test_who_leaves_in_the_moment_in_which_it_is_served_leaves_no_lease",
    ),
    Break(
        2,
        "a caller that cannot wait for the load does not start it",
        f"{LOADER}/supervision/load_requests.py",
        "            self._post(events.LoadRequested(usable))\n            raise\n",
        "            raise\n",
        f"{ADMITS}::test_a_load_that_outlasts_a_deadline_is_begun_all_the_same",
    ),
    Break(
        3,
        "a model that is starting or loading may be evicted",
        f"{LOADER}/scheduling/eviction.py",
        "        if occupant.leaving or not occupant.settled or occupant.pinned:",
        "        if occupant.leaving or occupant.pinned:",
        f"{PLANS}::test_plans_keep_the_rules",
    ),
    Break(
        3,
        "a model that is loading counts as settled",
        f"{LOADER}/scheduling/occupancy.py",
        "settled=phase is Phase.READY,",
        "settled=phase in (Phase.LOADING, Phase.READY),",
        f"{PROMISES}::test_3_a_load_that_nobody_waits_for_is_not_evicted",
    ),
    Break(
        3,
        "a waiting call gets its lease shortly after the model is loaded, not at once",
        f"{LOADER}/admission/waiters.py",
        "            self._serve(waiter, lease)\n",
        "            asyncio.get_running_loop().call_soon(self._serve, waiter, lease)\n",
        f"{PROMISES}::test_3_a_model_is_used_before_it_makes_way_for_the_next",
    ),
    Break(
        4,
        "the idle watchdog ignores whether a model is in use",
        f"{LOADER}/scheduling/watchdog.py",
        "        and not occupant.busy\n",
        "",
        f"{V2}::test_v2_06_the_end_of_one_call_does_not_make_the_others_idle",
    ),
    Break(
        4,
        "the end of the drain time cuts off running calls",
        f"{LOADER}/lifecycle/machine.py",
        '            kept = replace(state, phase=Phase.READY, message="", stop=None, reload=())\n'
        "            return kept, (RefuseStop(state.generation), AdmitWaiters(state.generation))",
        "            return replace(state, phase=Phase.STOPPING), (StopGroup(generation, True),)",
        f"{LIFE}::test_busy_calls_refuse_the_stop_and_the_model_serves_on",
    ),
    Break(
        4,
        "a direct client's lease does not hold its instance",
        f"{LOADER}/direct/lease_book.py",
        "        hold.instance.calls.open_direct()\n",
        "        hold.instance.calls.open_direct()\n        hold.release()\n",
        f"{LEASES}::test_an_unload_waits_for_leases",
    ),
    Break(
        4,
        "the lease of a direct client that vanished is not released",
        f"{LOADER}/direct/resolver.py",
        "            self._book.release(lease.key)\n",
        "",
        f"{DIRECT}::test_a_client_that_is_killed_holds_nothing",
    ),
    Break(
        4,
        "a stream holds its lease only until its first message",
        f"{LOADER}/gateway/call.py",
        "                await write(response)\n",
        "                lease.release()\n                await write(response)\n",
        f"{LIVES}::test_unload_waits_for_calls_and_refuses_when_they_stay",
    ),
    Break(
        4,
        "a model in use is evicted like an idle one",
        f"{LOADER}/scheduling/occupancy.py",
        "busy=bool(instance and instance.calls.holds) or wanted,",
        "busy=False,",
        f"{LIMITS}::test_no_room_in_time_is_refused_with_a_time_to_retry",
    ),
    Break(
        5,
        "GetMetrics is a call like any other",
        f"{LOADER}/gateway/methods.py",
        'PROBES = frozenset({"Health", "Status", "GetMetrics"})',
        'PROBES = frozenset({"Health", "Status"})',
        f"{PROMISES}::test_5_no_probe_counts_or_keeps_a_model",
    ),
    Break(
        5,
        "a probe counts as a call",
        f"{LOADER}/admission/leases.py",
        "        return Lease(self._ready, self._released, holds=False)",
        "        lease = Lease(self._ready, self._released, holds=False)\n"
        "        lease.use()\n"
        "        return lease",
        f"{PROMISES}::test_5_no_probe_counts_or_keeps_a_model",
    ),
    Break(
        5,
        "a probe restarts a model's idle time",
        f"{LOADER}/admission/leases.py",
        "        return Lease(self._ready, self._released, holds=False)",
        "        self._ready.calls.mark_loaded()\n"
        "        return Lease(self._ready, self._released, holds=False)",
        f"{PROMISES}::test_5_no_probe_counts_or_keeps_a_model",
    ),
    Break(
        6,
        "the exit of a process is found by polling every two seconds",
        f"{LOADER}/supervision/runner.py",
        "        how = await process.wait()\n",
        "        how = await process.wait()\n        await asyncio.sleep(2)\n",
        f"{PROMISES}::test_6_a_death_is_seen_at_once",
    ),
    Break(
        6,
        "health changes only with the next poll",
        f"{LOADER}/wiring.py",
        "    loader.listen(reported.changed)\n",
        "    async def poll() -> None:\n"
        "        import asyncio\n"
        "        from .views.model import ModelFilter\n"
        "        while True:\n"
        "            for model in views.select(ModelFilter()):\n"
        "                reported.changed(model.name, model)\n"
        "            await asyncio.sleep(2)\n"
        '    tasks.spawn(poll(), name="poll")\n',
        f"{PROMISES}::test_6_a_death_is_seen_at_once",
    ),
    Break(
        6,
        "calls in flight get gRPC's own message, not the cause",
        f"{LOADER}/gateway/call.py",
        "        if gone and (cause := await instance.wait_ended(self._cause_timeout)):\n",
        "        if instance.outdated and (cause := await instance.wait_ended(self._cause_timeout)):\n",
        f"{FAILURES}::test_killed_while_streaming",
    ),
    Break(
        6,
        "a model is loaded again at once, however often it crashes",
        f"{LOADER}/lifecycle/machine.py",
        "    if crashes == 1:\n",
        "    if crashes:\n",
        f"{FAILURES}::test_repeated_crashes_back_off",
    ),
    Break(
        7,
        "the failure of one backend blocks the others",
        f"{LOADER}/supervision/backoffs.py",
        "        if waiting and (not usable or state.quarantined):\n",
        "        if waiting:\n",
        f"{FAILURES}::test_a_candidate_in_backoff_is_passed_over",
    ),
    Break(
        7,
        "after a failure no other backend is tried",
        f"{LOADER}/lifecycle/machine.py",
        "    rest = state.candidates[1:]\n",
        "    rest = ()\n",
        f"{HEAD}::test_head_01_a_failure_does_not_keep_the_next_candidates_from_their_try",
    ),
    Break(
        7,
        "a call during a back-off gets no time to retry",
        f"{LOADER}/supervision/errors.py",
        '        retry_after=left,\n        metadata={"cause": cause.reason},\n',
        '        metadata={"cause": cause.reason},\n',
        f"{FAILURES}::test_repeated_crashes_back_off",
    ),
    Break(
        7,
        "the back-off after a failure stays although the configuration has changed",
        f"{LOADER}/supervision/load_requests.py",
        "        if model.entry is not None and model.entry.revision != entry.revision:\n"
        "            self._post(events.Changed())\n"
        "        return",
        "        return",
        f"{PROMISES}::test_7_what_changed_is_tried_again_at_once",
    ),
    Break(
        7,
        "a change ends the back-off, but the failures still count",
        f"{LOADER}/lifecycle/machine.py",
        "    cleared = replace(state, crashes=0, penalties=())\n",
        "    cleared = replace(state, crashes=0)\n",
        f"{LIFE}::test_only_what_failed_has_to_wait",
    ),
)
