"""Whatever leases come and go, the counts of an instance are those of the leases that are open."""

from __future__ import annotations

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st

from services.loader.admission.connection_lease import CountedCalls
from services.loader.admission.meter import CallMeter
from services.loader.backends.backend import Backend
from services.loader.instances.call_counts import CALLS, CallCounts
from services.loader.instances.instance import Instance, Lease
from services.loader.models.entry import ModelEntry


@given(
    st.lists(
        st.tuples(st.sampled_from(["call", "load", "probe", "frames", "end"]), st.floats(0, 0.99))
    )
)
def test_the_counts_are_those_of_the_open_leases(steps: list[tuple[str, float]]) -> None:
    async def run() -> None:
        instance = Instance("uid", 1, "m", Backend("b"), ModelEntry("m"), 0.0)
        connection = CountedCalls(
            instance, lambda _: None, CallMeter(lambda: 10), stands_still=lambda: 0.0
        )
        leases: list[Lease] = []
        begun = 0
        for step, which in steps:
            if step == "frames":
                connection.begin(2)
                connection.end(1)
                begun += 2
            elif step == "end" and leases:
                lease = leases.pop(int(which * len(leases)))
                lease.release()
                lease.release()
            elif step != "end":
                lease = Lease(instance, lambda _: None, holds=step != "probe")
                if step == "call":
                    lease.use()
                    lease.use()
                    begun += 1
                leases.append(lease)
            calls = instance.calls
            assert calls.active == sum(lease.used for lease in leases) + connection.open
            assert calls.holds == sum(lease.holds for lease in leases) + connection.open
            assert calls.total == begun and calls.direct == 0
        for lease in (*leases, connection):
            lease.release()
        assert calls_at_rest(instance.calls) and not instance.leases

    asyncio.run(run())


def calls_at_rest(calls: CallCounts) -> bool:
    return calls.active == calls.holds == calls.direct == 0


def test_a_direct_lease_is_a_call_but_no_active_one() -> None:
    calls = CallCounts()
    calls.open_direct()
    assert (calls.direct, calls.total, calls.active) == (1, 1, 0)
    calls.close_direct()
    assert calls_at_rest(calls) and calls.total == 1


def test_a_call_leaves_its_duration_and_the_time_of_its_end() -> None:
    calls = CallCounts()
    calls.begin()
    calls.end_one(time.monotonic() - 5)
    assert 5 <= calls.durations[0] < 10
    assert calls.last_used is not None and time.time() - calls.last_used < 5
    assert time.monotonic() - calls.idle_since < 5


def test_calls_that_are_in_the_total_already_are_not_counted_twice() -> None:
    calls = CallCounts()
    calls.begin()
    calls.begin(3, counted=1)
    assert (calls.active, calls.total) == (4, 3)


def test_the_first_load_is_no_use() -> None:
    calls = CallCounts()
    calls.mark_loaded()
    assert calls.idle_since > 0 and calls.last_used is None
    assert calls.durations.maxlen == CALLS
