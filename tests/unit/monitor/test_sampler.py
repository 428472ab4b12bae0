"""The sampler, on real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from services.common.errors import DeadlineError
from services.monitor.sampler import ProcessGoneError, Sampler
from tests.fakes.loader_fake import child
from tests.tools.processes import cpu_seconds
from tests.tools.waiting import eventually

IDLE = "import time; print('ready', flush=True); time.sleep(60)"
BUSY = "print('ready', flush=True)\nwhile True: pass"
# Three levels: a parent, two children, and one grandchild.
TREE = """
import os, sys, time
def fork(then):
    if os.fork() == 0:
        then(); time.sleep(60); os._exit(0)
fork(lambda: fork(lambda: print('ready', flush=True)))
fork(lambda: None)
time.sleep(60)
"""
GROWS = """
import sys
print('ready', flush=True)
sys.stdin.readline()
held = bytearray(b'x' * (64 << 20))
print('grown', flush=True)
sys.stdin.readline()
"""
ZOMBIE_CHILD = """
import os, time
pid = os.fork()
if pid == 0:
    start = time.process_time()
    while time.process_time() - start < 0.3: pass
    os._exit(0)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print('ready', flush=True)
time.sleep(60)
"""
REAPED_CHILD = ZOMBIE_CHILD.replace("os.WEXITED | os.WNOWAIT", "os.WEXITED")
ORPHAN = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        held = bytearray(b'x' * (32 << 20))
        print('ready', flush=True)
        time.sleep(60)
    os._exit(0)
os.wait()
time.sleep(60)
"""


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    made = Sampler(timeout=5.0, interval=0.1, start_time_tolerance=5.0, remembered=4)
    yield made
    made.close()


async def test_one_process(sampler: Sampler) -> None:
    with child(IDLE) as process:
        sample = await sampler.sample(process.pid, time.time())
        assert sample.pid == process.pid
        assert sample.process_count == 1
        assert sample.thread_count == 1
        assert sample.open_files is not None and sample.open_files >= 2
        assert 1 << 20 < sample.rss < sample.vms
        assert sample.pss is not None
        assert 0 < sample.pss <= sample.rss
        assert sample.memory == sample.pss
        assert abs(sample.start_time - time.time()) < 5


async def test_a_forking_tree_is_summed(sampler: Sampler) -> None:
    with child(TREE) as process:

        def whole() -> bool:
            return sampler.read(process.pid).process_count == 4

        await eventually(whole, timeout=5, what="four processes")
        sample = sampler.read(process.pid)
        own = psutil.Process(process.pid).memory_info().rss
        assert sample.rss > 2 * own
        # What four forks share is counted four times in one and once in the other.
        assert sample.pss is not None and sample.pss < sample.rss
        assert sample.thread_count == 4


async def test_a_worker_whose_parent_ended_still_counts(sampler: Sampler) -> None:
    with child(ORPHAN) as process:
        await eventually(
            lambda: not psutil.Process(process.pid).children(),
            timeout=5,
            what="the worker's parent to end",
        )
        sample = sampler.read(process.pid)
        assert sample.process_count == 2
        assert sample.rss > 32 << 20


async def test_growth_is_seen(sampler: Sampler) -> None:
    with child(GROWS) as process:
        before = await sampler.sample(process.pid)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "grown\n"
        after = await sampler.sample(process.pid)
        assert after.rss - before.rss > 60 << 20
        assert before.pss is not None and after.pss is not None
        assert after.pss - before.pss > 60 << 20


async def test_processor_use_since_the_start_and_since_the_last(sampler: Sampler) -> None:
    with child(BUSY) as process:
        await eventually(lambda: cpu_seconds(process.pid) > 0.4, what="its use of a processor")
        used = cpu_seconds(process.pid)
        first = sampler.read(process.pid)
        # The share that the system gave it, which is all of it on a quiet machine.
        share = 100 * used / (time.time() - first.start_time)
        assert first.cpu_percent == pytest.approx(share, rel=0.25)
        begun, before = time.monotonic(), cpu_seconds(process.pid)
        await eventually(lambda: cpu_seconds(process.pid) > before + 0.4, what="more of it")
        second = sampler.read(process.pid)
        elapsed = time.monotonic() - begun
        share = 100 * (cpu_seconds(process.pid) - before) / elapsed
        assert second.cpu_percent == pytest.approx(share, rel=0.25)
        assert second.cpu_percent == pytest.approx(
            100 * (second.cpu_seconds - first.cpu_seconds) / elapsed, rel=0.1
        )
        assert second.cpu_percent < 120
        os.kill(process.pid, signal.SIGSTOP)
        await eventually(
            lambda: sampler.read(process.pid).cpu_percent < 5, what="no use by one that is stopped"
        )


async def test_a_sample_too_soon_repeats_the_last_percentage(sampler: Sampler) -> None:
    with child(BUSY) as process:
        first = sampler.read(process.pid)
        assert sampler.read(process.pid).cpu_percent == first.cpu_percent


@pytest.mark.parametrize("code", [ZOMBIE_CHILD, REAPED_CHILD], ids=["zombie", "reaped"])
async def test_the_time_of_ended_children_counts(sampler: Sampler, code: str) -> None:
    with child(code) as process:
        sample = sampler.read(process.pid)
        assert sample.process_count == 1
        assert sample.cpu_seconds >= 0.28


async def test_a_process_that_is_gone(sampler: Sampler) -> None:
    with child(IDLE) as process:
        process.kill()
        process.wait()
        with pytest.raises(ProcessGoneError, match="is gone"):
            await sampler.sample(process.pid)


async def test_a_zombie_is_gone(sampler: Sampler) -> None:
    with child(IDLE) as process:
        process.kill()
        await eventually(
            lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE,
            timeout=5,
            what="the process to end",
        )
        with pytest.raises(ProcessGoneError, match="is a zombie"):
            await sampler.sample(process.pid)


async def test_a_number_that_another_process_has_now(sampler: Sampler) -> None:
    with child(IDLE) as process:
        with pytest.raises(ProcessGoneError, match="belongs to another"):
            await sampler.sample(process.pid, time.time() - 60)
        await sampler.sample(process.pid, time.time() - 2)


@pytest.mark.parametrize("pid", [-1, 2**31 - 1, 2**40])
async def test_a_number_that_is_none(sampler: Sampler, pid: int) -> None:
    with pytest.raises(ProcessGoneError):
        await sampler.sample(pid)


async def test_only_the_newest_trees_are_remembered(sampler: Sampler) -> None:
    for _ in range(6):
        with child(IDLE) as process:
            sampler.read(process.pid)
    assert len(sampler._baselines) == 4


async def test_a_sample_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(timeout=0.05, interval=0.1, start_time_tolerance=5.0, remembered=4)
    monkeypatch.setattr(sampler, "read", lambda pid, started: time.sleep(0.3))
    with pytest.raises(DeadlineError, match="could not be sampled"):
        await sampler.sample(1)
    sampler.close()
