"""Ends the backends when the loader dies without warning (SIGKILL, power of the out-of-memory
killer).

A parent-death signal reaches only the direct child, and only if that child does not exec through a
shell. So a small process of its own, which outlives the loader by a moment, holds one end of a
pipe: when the pipe closes, the loader is gone, and the guard kills every registered process group,
and every process that carries the loader's marker in its environment. That reaches helpers that
left the group, and a backend that was started in the instant before the loader died. It works
without the backends' help, whatever language they are written in.

Backends that the loader wants kept are left for the next loader to take over. The next loader ends
this guard once its own guard watches over them; if no loader comes in time, they are killed like
the others.

Run as a program (`python -I -S guard.py <patience> <marker>...`), this file imports the standard
library only, so that it is up in about 15 ms and small. The first marker is that of its own loader.
"""

from __future__ import annotations

import os
import signal
import sys
import time

SCAN_SECONDS = 1.5
"""How long the guard looks for processes that were still forking; promised to clients: 2 s in all."""
_PAUSE = 0.02
_QUIET_ROUNDS = 5
"""Empty scans needed in a row: a process shows no environment while it execs."""
_LOOK = 0.25
"""Seconds between two checks that the kept processes are still there."""
_START_FIELD = 19
"""Of /proc/<pid>/stat, counted behind the command's name: when the process was started."""


class Group:
    """A process group that is watched over."""

    def __init__(self, number: int, uid: bytes) -> None:
        """Remember which process leads it now."""
        self.number = number
        self.marker = b"CORRAL_INSTANCE=" + uid
        self.kept = False
        self._leader = _start(number)

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """Signal the group; False if it is gone, and its id free for reuse."""
        if _start(self.number) not in (self._leader, b""):
            return False
        try:
            os.killpg(self.number, number)
        except (ProcessLookupError, PermissionError):
            return False  # the latter if the number was reused by another user's group
        return True


def watch(patience: float, markers: set[bytes]) -> None:
    """Follow the loader's orders on stdin until it closes; then kill what is left, unless it must
    stay."""
    groups: dict[int, Group] = {}
    for line in sys.stdin.buffer:
        order, *words = line.split()
        if order in (b"add", b"keep"):
            number, group = int(words[0]), Group(int(words[0]), words[1])
            known = groups.get(number)
            if known is not None and known.marker == group.marker:
                group = known
            group.kept = order == b"keep"
            groups[number] = group
        elif order == b"remove":
            groups.pop(int(words[0]), None)
        elif order == b"leave":
            return
    markers = markers | {group.marker for group in groups.values()}
    kept = {number: group for number, group in groups.items() if group.kept}
    end({n: group for n, group in groups.items() if n not in kept}, markers, kept)
    if kept:
        wait(kept, patience)
        end(kept, markers, {})


def end(groups: dict[int, Group], markers: set[bytes], spared: dict[int, Group]) -> None:
    """Kill the groups, and all marked processes that are not spared, until none is found."""
    left = {group.marker for group in spared.values()}
    deadline = time.monotonic() + SCAN_SECONDS
    quiet = 0
    while quiet < _QUIET_ROUNDS and time.monotonic() < deadline:
        groups = {number: group for number, group in groups.items() if group.kill()}
        found = len(groups) + kill_marked(markers, left)
        quiet = 0 if found else quiet + 1
        time.sleep(_PAUSE)  # nothing to wait for but the kernel; this process does nothing else


def wait(groups: dict[int, Group], patience: float) -> None:
    """Leave the groups alone for the given seconds; forget those that end: their ids get reused."""
    # A process that reads the loader's log until it closes must not wait for us.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    deadline = time.monotonic() + patience
    while groups and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(_LOOK, left))
        for number, group in list(groups.items()):
            if not group.kill(0):
                del groups[number]


def kill_marked(markers: set[bytes], spared: set[bytes]) -> int:
    """SIGKILL every process, other than this one, with a marker in its environment; count them."""
    killed = 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                found = file.read().split(b"\0")
            if not markers.isdisjoint(found) and spared.isdisjoint(found):
                os.kill(int(name), signal.SIGKILL)
                killed += 1
        except OSError:
            continue  # it ended, or belongs to another user
    return killed


def _start(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[_START_FIELD]
    except (OSError, IndexError):
        return b""


if __name__ == "__main__":
    # The terminal's ctrl-C and a service manager's SIGTERM are meant for the loader.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watch(float(sys.argv[1]), {argument.encode() for argument in sys.argv[2:]})
