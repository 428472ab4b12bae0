"""Finding the processes that belong to a backend, by group and by marker. Blocking; run in a thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_VMSTAT = Path("/proc/vmstat")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_FIELD = 19
"""Of /proc/<pid>/stat, counted behind the command's name: the start, in clock ticks since boot (proc(5))."""


def group_members(pgid: int) -> list[psutil.Process]:
    """Return the living processes of a group. A zombie has ended; its parent just does not know."""
    return _living(lambda pid: os.getpgid(pid) == pgid)


def marked_processes(name: str, value: str) -> list[psutil.Process]:
    """Return the living processes whose environment has `name=value`, in whatever group they are."""
    return find_marked({f"{name}={value}"})


def find_marked(markers: Iterable[str], *, spared: Iterable[str] = ()) -> list[psutil.Process]:
    """Return the living processes with one of these `NAME=value` in their environment.

    Those that also have one of the spared are left out.
    """
    wanted, left = ({text.encode() for text in texts} for texts in (markers, spared))

    def belongs(pid: int) -> bool:
        found = _environment(pid)
        return not wanted.isdisjoint(found) and left.isdisjoint(found)

    return _living(belongs)


def birth(pid: int) -> str:
    """Return a process's boot and start time, unique even when the pid is reused. Empty if it is
    gone.

    A zombie still has its own.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        # The command's name may hold spaces and brackets; nothing behind it does.
        return f"{_BOOT_ID.read_text().strip()}/{stat.rpartition(')')[2].split()[_START_FIELD]}"
    except (OSError, IndexError):
        return ""


def is_process(pid: int, born: str, marker: str) -> bool:
    """Whether this is the recorded process: same pid, same start, and the same marker."""
    return bool(born) and birth(pid) == born and _carries(pid, marker)


def own_group(pid: int, marker: str, *, leads: bool) -> list[psutil.Process]:
    """Return the living processes of a backend's group; empty if the group may be another
    program's.

    The group is the backend's own if its leader is still the same process (`leads`), or if a member
    has its marker.
    """
    members = group_members(pid)
    if leads or any(_carries(process.pid, marker) for process in members):
        return members
    return []


def processes_of(pid: int, marker: str, *, leads: bool) -> list[psutil.Process]:
    """Return the living processes of a backend: those of its group, and those that left it."""
    found = own_group(pid, marker, leads=leads) + find_marked({marker})
    return list({process.pid: process for process in found}.values())


def listens_on(process: psutil.Process, port: int) -> bool:
    """Whether the process listens on the TCP port."""
    with suppress(psutil.Error):
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for connection in process.net_connections(kind="tcp")
        )
    return False


def oom_kills() -> int:
    """Return the number of out-of-memory kills since boot; 0 where the kernel has no counter."""
    with suppress(OSError, ValueError):
        for line in _VMSTAT.read_text().splitlines():
            key, _, count = line.partition(" ")
            if key == "oom_kill":
                return int(count)
    return 0


def _carries(pid: int, marker: str) -> bool:
    try:
        return marker.encode() in _environment(pid)
    except OSError:
        return False


def _environment(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _living(belongs: Callable[[int], bool]) -> list[psutil.Process]:
    found = []
    for pid in psutil.pids():
        # A process may end, or belong to another user, between any two of these lines.
        with suppress(OSError, psutil.Error):
            if belongs(pid):
                process = psutil.Process(pid)
                # Again, now that psutil knows its start: it signals no later owner of the pid.
                if process.status() != psutil.STATUS_ZOMBIE and belongs(pid):
                    found.append(process)
    return found
