import asyncio
import os
import signal
import threading

import pytest
from structlog.testing import capture_logs

from services.common.process.stopping import StopSignals, StopWatchdog


def signals(limit: float = 60.0, watch_fd: int | None = None) -> StopSignals:
    watchdog = StopWatchdog(lambda code: None)
    return StopSignals(grace=0.0, limit=limit, watchdog=watchdog, watch_fd=watch_fd)


async def test_the_first_signal_stops_and_the_second_hurries() -> None:
    with signals() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(caught.first.wait(), 5)
        assert not caught.second.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(caught.second.wait(), 5)
        caught._watchdog.disarm()


async def test_the_end_of_the_parent_stops() -> None:
    reader, writer = os.pipe()
    with signals(watch_fd=reader) as caught:
        os.close(writer)
        await asyncio.wait_for(caught.first.wait(), 5)
        caught._watchdog.disarm()
    os.close(reader)


async def test_work_ends_by_itself_or_at_the_first_signal() -> None:
    caught = signals()

    async def answer() -> int:
        return 5

    async def fail() -> None:
        raise ValueError("x")

    assert await caught.unless_stopped(answer()) == 5
    with pytest.raises(ValueError, match="x"):
        await caught.unless_stopped(fail())
    caught.first.set()
    assert await caught.unless_stopped(asyncio.Event().wait()) is None


async def test_a_stop_that_hangs_ends_the_process() -> None:
    gave_up = threading.Event()
    codes: list[int] = []

    def give_up(code: int) -> None:
        codes.append(code)
        gave_up.set()

    watchdog = StopWatchdog(give_up)
    with capture_logs() as logs:
        watchdog.arm(60, asyncio.get_running_loop())
        watchdog.arm(0.01, asyncio.get_running_loop())
        assert await asyncio.to_thread(gave_up.wait, 5)
    assert {"the stop hangs; giving up", "task", "thread"} == {line["event"] for line in logs}
    assert codes == [1]
    watchdog.disarm()
