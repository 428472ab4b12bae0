"""Background tasks and waiting."""

import asyncio

import pytest
from structlog.testing import capture_logs

from services.common.errors import DeadlineError
from services.common.tasks import Background, wait_until


async def test_close_cancels_and_awaits() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            # The way down may take a turn of the loop, and close waits for it.
            await asyncio.sleep(0)
            ended.append(True)

    async with Background() as tasks:
        tasks.spawn(work(), name="a")
        tasks.spawn(work(), name="b")
        await asyncio.sleep(0)
        assert len(tasks) == 2
    assert ended == [True, True]
    assert len(tasks) == 0
    await tasks.close()
    with pytest.raises(RuntimeError, match="'late'"):
        tasks.spawn(work(), name="late")


async def test_a_failure_is_logged_under_the_tasks_name() -> None:
    async def work() -> None:
        raise KeyError("x")

    with capture_logs() as lines:
        async with Background() as tasks:
            task = tasks.spawn(work(), name="reaper")
            await asyncio.wait({task})
            await asyncio.sleep(0)
    assert [(line["event"], line["task"]) for line in lines] == [
        ("background task failed", "reaper")
    ]


async def test_a_tasks_result_can_be_had() -> None:
    async def work() -> int:
        return 7

    async with Background() as tasks:
        assert await tasks.spawn(work(), name="seven") == 7


async def test_wait_until() -> None:
    seen: list[int] = []

    def grown() -> bool:
        seen.append(1)
        return len(seen) > 3

    async def later() -> bool:
        return grown()

    await wait_until(grown, timeout=1, what="growth", interval=0.001)
    await wait_until(later, timeout=1, what="growth")
    with pytest.raises(DeadlineError, match=r"rain did not come true within 0.02 s"):
        await wait_until(lambda: False, timeout=0.02, what="rain")
