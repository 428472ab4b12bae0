"""Backends' memory, measured on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.devices.gpus import Gpus
from services.loader.memory.meter import Meter, parse_rollup, resident
from services.loader.processes.interface import MARKER
from services.loader.processes.lookup import marked_processes
from tests.tools.waiting import eventually_sync

MIB = 1 << 20
BLOCK = 64 * MIB
IDLE = "import time; print('ready', flush=True); time.sleep(60)"
HOLDS = f"held = b'x' * {BLOCK}\n{IDLE}"
# The parent's memory is shared by its child.
FORKS = f"import os\nheld = b'x' * {BLOCK}\nif os.fork():\n    import time; time.sleep(60)\n{IDLE}"
CHILD_HOLDS = f"import os\nif os.fork():\n    import time; time.sleep(60)\n{HOLDS}"
ESCAPES = f"import os\nif os.fork():\n    import time; time.sleep(60)\nos.setsid()\n{HOLDS}"
# The escaped child's parent is gone too: only the marker is left.
ORPHAN = f"""
import os, time
if os.fork():
    time.sleep(60)
if os.fork():
    os._exit(0)
os.setsid()
{HOLDS}"""
MAPS = """
import mmap, sys
file = open(sys.argv[1], 'rb')
held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(held[at] for at in range(0, len(held), 4096))
"""


@contextmanager
def backend(code: str, *arguments: str) -> Iterator[tuple[int, str]]:
    """Start a backend as the launcher does; yield its group and uid once it prints its line."""
    uid = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        env=os.environ | {MARKER: uid},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), "it ended before it was ready"
        yield process.pid, uid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for escapee in marked_processes(MARKER, uid):
            with suppress(psutil.Error):
                escapee.kill()
        process.communicate()


@pytest.fixture
def meter() -> Meter:
    return Meter(Gpus())


@pytest.fixture(scope="module")
def idle() -> int:
    """Memory of the interpreter alone."""
    with backend(IDLE) as (group, uid):
        return Meter(Gpus()).measure(group, uid)["ram"]


@pytest.mark.parametrize("code", [HOLDS, FORKS, CHILD_HOLDS, ESCAPES, ORPHAN])
def test_a_block_is_seen_once_wherever_it_is(meter: Meter, idle: int, code: str) -> None:
    with backend(code) as (group, uid):
        # Each further interpreter adds at most its own memory.
        assert 0.9 * BLOCK < meter.measure(group, uid)["ram"] - idle < 1.1 * BLOCK + idle
        assert meter.measure(group, uid)["ram"] - idle > 0.9 * BLOCK


def test_within_a_tenth(meter: Meter, idle: int) -> None:
    with backend(HOLDS) as (group, uid):
        assert meter.measure(group, uid)["ram"] - idle == pytest.approx(BLOCK, rel=0.1)


def test_mapped_weights_count(meter: Meter, idle: int, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x" * BLOCK)
    with backend(MAPS + IDLE, str(tmp_path / "weights")) as (group, uid):
        assert meter.measure(group, uid)["ram"] - idle == pytest.approx(BLOCK, rel=0.1)


def test_a_backend_that_is_gone(meter: Meter) -> None:
    with backend(IDLE) as (group, uid):
        assert meter.measure(group, uid)
        os.killpg(group, signal.SIGKILL)
        eventually_sync(lambda: not meter.measure(group, uid), what="nothing of it")


def test_another_backend_does_not_count(meter: Meter, idle: int) -> None:
    with backend(HOLDS), backend(IDLE) as (group, uid):
        assert meter.measure(group, uid)["ram"] < idle + 0.1 * BLOCK


def test_escapees_are_looked_for_now_and_then() -> None:
    now = 0.0
    meter = Meter(Gpus(), escapees_interval=5, clock=lambda: now)
    with backend(ESCAPES) as (group, uid):
        assert meter.measure(group, "not started yet")["ram"] < BLOCK
        assert meter.measure(group, uid)["ram"] > BLOCK
        (escapee,) = [
            each for each in marked_processes(MARKER, uid) if os.getpgid(each.pid) != group
        ]
        escapee.kill()
        # It is no longer listed, although the next scan is not due yet.
        eventually_sync(lambda: meter.measure(group, uid)["ram"] < BLOCK, what="its end")
        now = 4.9
        assert set(meter._looks) == {"not started yet", uid}
        now = 5.0
        meter.measure(group, uid)
        assert set(meter._looks) == {uid}


def test_it_is_quick(meter: Meter) -> None:
    def once() -> float:
        began = time.perf_counter()
        meter.measure(group, uid)
        return time.perf_counter() - began

    with backend(IDLE) as (group, uid):
        assert min(once() for _ in range(20)) < 0.005


def test_processes_that_do_not_tell_their_share(tmp_path: Path) -> None:
    with backend(HOLDS) as (group, _):
        process = psutil.Process(group)
        exact = resident(process)
        # No rollup, as on kernels before 4.14: unshared memory counts.
        unshared = resident(process, tmp_path)
        assert BLOCK < unshared <= exact + MIB
        assert unshared <= process.memory_info().rss


def test_shares() -> None:
    text = "55b2-7ffe ---p 00000000 00:00 0 [rollup]\nRss: 1764 kB\nPss:   367 kB\nPss_Anon: 9 kB\n"
    assert parse_rollup(text) == 367 * 1024
    assert parse_rollup("") is None


@given(st.text("Ps: 0123456789kB\n-\u0663", max_size=60))
def test_no_text_makes_it_fail(text: str) -> None:
    assert (parse_rollup(text) or 0) >= 0
