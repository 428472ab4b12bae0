"""Distinguishing our process from another one with the same pid."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from services.loader.processes.guard import Group
from services.loader.processes.lookup import birth, find_marked, is_process, own_group, processes_of
from tests.tools.processes import SLEEPER, children
from tests.tools.waiting import eventually_sync

MARKER = f"CORRAL_INSTANCE={uuid.uuid4().hex}"


@pytest.fixture
def marked() -> Iterator[subprocess.Popen[bytes]]:
    name, _, value = MARKER.partition("=")
    process = subprocess.Popen(SLEEPER, start_new_session=True, env={**os.environ, name: value})
    # A process shows no environment during exec.
    eventually_sync(lambda: find_marked({MARKER}), what="its environment")
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_pid_start_and_marker_must_match(
    marked: subprocess.Popen[bytes], other: subprocess.Popen[bytes]
) -> None:
    born = birth(marked.pid)
    assert is_process(marked.pid, born, MARKER)
    assert not is_process(marked.pid, born, MARKER + "0")
    assert not is_process(marked.pid, f"{born}0", MARKER)
    assert not is_process(marked.pid, "", MARKER)
    assert not is_process(other.pid, birth(other.pid), MARKER)


def test_a_zombie_keeps_its_birth_and_is_not_alive(marked: subprocess.Popen[bytes]) -> None:
    born = birth(marked.pid)
    marked.kill()
    os.waitid(os.P_PID, marked.pid, os.WEXITED | os.WNOWAIT)
    assert birth(marked.pid) == born
    assert own_group(marked.pid, MARKER, leads=True) == []
    marked.wait()
    assert birth(marked.pid) == ""


def test_a_group_is_ours_by_its_leader_or_by_a_marked_member(
    marked: subprocess.Popen[bytes], other: subprocess.Popen[bytes]
) -> None:
    assert [p.pid for p in own_group(other.pid, MARKER, leads=True)] == [other.pid]
    assert own_group(other.pid, MARKER, leads=False) == []
    assert [p.pid for p in own_group(marked.pid, MARKER, leads=False)] == [marked.pid]
    assert {p.pid for p in processes_of(other.pid, MARKER, leads=False)} == {marked.pid}
    assert {p.pid for p in processes_of(other.pid, MARKER, leads=True)} == {marked.pid, other.pid}


def test_some_of_the_marked_are_spared(marked: subprocess.Popen[bytes]) -> None:
    assert [p.pid for p in find_marked({MARKER, "X=y"})] == [marked.pid]
    assert find_marked({MARKER}, spared={MARKER}) == []


def test_the_guard_leaves_a_number_alone_that_was_given_out_again(
    other: subprocess.Popen[bytes],
) -> None:
    group = Group(other.pid, b"uid")
    group._leader = b"1"  # when the guard got the group, its leader was another
    assert not group.kill(0) and not group.kill()
    gone = Group(2**22 + 1, b"uid")
    assert not gone.kill()
    assert other.poll() is None


def test_the_guard_kills_a_group_that_has_lost_its_leader() -> None:
    shell = subprocess.Popen(
        ["sh", "-c", f"{' '.join(SLEEPER[:3])} '{SLEEPER[3]}' & wait"], start_new_session=True
    )
    (helper,) = eventually_sync(lambda: children(shell.pid), what="the shell's child")
    group = Group(shell.pid, b"uid")
    shell.kill()
    shell.wait()
    assert os.getpgid(helper) == shell.pid
    assert group.kill(signal.SIGKILL)
    eventually_sync(lambda: not group.kill(0), what="the end of the group")
