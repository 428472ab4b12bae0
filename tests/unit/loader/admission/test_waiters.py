"""Calls that leave while they wait for a lease: they must not keep one."""

from __future__ import annotations

import asyncio

import pytest

from services.loader.admission.meter import ANYONE, CallMeter
from services.loader.admission.wait_estimate import Stopwatch
from services.loader.admission.waiters import LeaseWaiters
from services.loader.backends.backend import Backend
from services.loader.instances.instance import Instance, Lease
from services.loader.models.catalog import ModelEntry


def make() -> tuple[LeaseWaiters, CallMeter, Instance]:
    meter = CallMeter(lambda: 10)
    instance = Instance("uid", 1, "m", Backend("b"), ModelEntry("m"), 0.0)
    return LeaseWaiters(meter, Stopwatch()), meter, instance


async def test_who_leaves_in_the_moment_in_which_it_is_served_leaves_no_lease() -> None:
    waiters, meter, instance = make()
    waiting = asyncio.ensure_future(waiters.join(ANYONE))
    await asyncio.sleep(0)  # the call waits now
    waiters.admit(lambda calls: Lease(instance, lambda _: None), lambda: True)
    waiting.cancel()  # it was served, but has not noticed yet
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not instance.leases and not instance.calls.holds
    assert meter.waiting == waiters.calls == 0 and not waiters.any


async def test_who_leaves_before_gives_its_place_to_nobody() -> None:
    waiters, meter, instance = make()
    leaves, stays = (asyncio.ensure_future(waiters.join(ANYONE)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert meter.waiting == waiters.calls == 1
    waiters.admit(lambda calls: Lease(instance, lambda _: None), lambda: True)
    assert (await stays) in instance.leases and len(instance.leases) == 1
