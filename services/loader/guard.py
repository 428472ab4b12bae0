"""Ends the backends when the loader dies without a word (SIGKILL, power of the out-of-memory killer).

A parent-death signal reaches only the direct child, and only if that child does not exec through a
shell. So a small process of its own, which outlives the loader by a moment, holds one end of a pipe:
when the pipe closes, the loader is gone, and the guard kills every process group it was told of, and
every process that carries the loader's marker in its environment. That reaches helpers that left the
group, and a backend that was started in the instant before the loader died. It needs nothing of the
backends, whatever language they are written in.

Run as a program (`python -I -S guard.py <marker>`), this file imports the standard library only, so
that it is up in about 15 ms and small.
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
"""Looks that find nothing before it is believed: a process shows no environment while it execs."""


def watch(marker: bytes) -> None:
    """Follow the loader's orders on stdin until it closes; then end what is left, unless told not to."""
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        order, _, number = line.strip().partition(b" ")
        if order == b"add":
            groups.add(int(number))
        elif order == b"remove":
            groups.discard(int(number))
        elif order == b"leave":
            return
    deadline = time.monotonic() + SCAN_SECONDS
    quiet = 0
    while quiet < _QUIET_ROUNDS and time.monotonic() < deadline:
        found = kill_groups(groups) + kill_marked(marker)
        quiet = 0 if found else quiet + 1
        time.sleep(_PAUSE)  # nothing to wait for but the kernel; this process does nothing else


def kill_groups(groups: set[int]) -> int:
    """SIGKILL each group; return how many still existed."""
    alive = 0
    for group in list(groups):
        try:
            os.killpg(group, signal.SIGKILL)
            alive += 1
        except ProcessLookupError:
            groups.discard(group)
        except PermissionError:
            groups.discard(group)  # the id was taken over by someone else's group
    return alive


def kill_marked(marker: bytes) -> int:
    """SIGKILL every process, other than this one, with the marker in its environment; count them."""
    killed = 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if marker in file.read().split(b"\0"):
                    os.kill(int(name), signal.SIGKILL)
                    killed += 1
        except OSError:
            continue  # it ended, or belongs to someone else
    return killed


if __name__ == "__main__":
    # The terminal's ctrl-C and a service manager's SIGTERM are meant for the loader.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watch(sys.argv[1].encode())
