"""The queue in front of the engine."""

import asyncio

import pytest

from backends.llama_cpp.admission import Admission
from backends.llama_cpp.errors import Exhausted, Unloaded


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def waiters(admission: Admission, count: int, order: list[int]) -> list[asyncio.Task[int]]:
    async def wait(number: int) -> int:
        slot = await admission.acquire()
        order.append(number)
        return slot

    return [asyncio.create_task(wait(number)) for number in range(count)]


async def test_slots_have_different_numbers() -> None:
    admission = Admission(3, 0)
    assert {await admission.acquire() for _ in range(3)} == {0, 1, 2}
    assert (admission.running, admission.waiting) == (3, 0)


async def test_first_come_first_served() -> None:
    admission, order = Admission(1, 10), list[int]()
    slot = await admission.acquire()
    tasks = waiters(admission, 4, order)
    await settle()
    assert admission.waiting == 4
    for task in tasks:
        admission.release(slot)
        assert await task == slot
    assert order == [0, 1, 2, 3]


async def test_nobody_overtakes_who_waits() -> None:
    admission, order = Admission(1, 10), list[int]()
    slot = await admission.acquire()
    (first,) = waiters(admission, 1, order)
    await settle()
    admission.release(slot)
    late = asyncio.create_task(admission.acquire())
    await settle()
    assert first.done()
    assert not late.done()
    admission.release(slot)
    assert await late == slot


async def test_a_full_queue_refuses() -> None:
    admission, order = Admission(1, 2), list[int]()
    slot = await admission.acquire()
    tasks = waiters(admission, 2, order)
    await settle()
    with pytest.raises(Exhausted, match="2 requests wait for 1 slots"):
        await admission.acquire()
    tasks[0].cancel()
    await settle()
    third = asyncio.create_task(admission.acquire())
    await settle()
    admission.release(slot)
    await tasks[1]
    admission.release(slot)
    await third


async def test_cancelled_while_waiting() -> None:
    admission, order = Admission(1, 10), list[int]()
    slot = await admission.acquire()
    tasks = waiters(admission, 3, order)
    await settle()
    tasks[1].cancel()
    await settle()
    assert admission.waiting == 2
    for task in (tasks[0], tasks[2]):
        admission.release(slot)
        await task
    admission.release(slot)
    assert order == [0, 2]
    assert admission.running == 0


async def test_cancelled_in_the_moment_the_slot_comes() -> None:
    admission, order = Admission(1, 10), list[int]()
    slot = await admission.acquire()
    tasks = waiters(admission, 2, order)
    await settle()
    admission.release(slot)
    tasks[0].cancel()  # it has been given the slot, and has not run yet
    await asyncio.wait(tasks)
    assert order == [1]
    admission.release(tasks[1].result())
    assert admission.running == 0


async def test_closing() -> None:
    admission, order = Admission(1, 10), list[int]()
    slot = await admission.acquire()
    tasks = waiters(admission, 2, order)
    await settle()
    admission.close()
    for task in tasks:
        with pytest.raises(Unloaded):
            await task
    with pytest.raises(Unloaded):
        await admission.acquire()
    admission.release(slot)
    assert admission.running == 0


async def test_never_more_than_the_slots() -> None:
    admission = Admission(3, 1000)
    running = most = 0

    async def one(number: int) -> None:
        nonlocal running, most
        slot = await admission.acquire()
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        admission.release(slot)

    tasks = [asyncio.create_task(one(number)) for number in range(200)]
    for task in tasks[::7]:
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= 3
    assert running <= 3
