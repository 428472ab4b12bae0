"""Finding the processes that belong to a backend, by group and by marker. Blocking; run in a thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

_VMSTAT = Path("/proc/vmstat")


def group_members(pgid: int) -> list[psutil.Process]:
    """Return the living processes of a group. A zombie has ended; its parent just does not know."""
    return _living(lambda pid: os.getpgid(pid) == pgid)


def marked_processes(name: str, value: str) -> list[psutil.Process]:
    """Return the living processes whose environment has `name=value`, in whatever group they are."""
    marker = f"{name}={value}".encode()
    return _living(lambda pid: marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


def listens_on(process: psutil.Process, port: int) -> bool:
    """Whether the process listens on the TCP port."""
    with suppress(psutil.Error):
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for connection in process.net_connections(kind="tcp")
        )
    return False


def oom_kills() -> int:
    """Return how often the kernel killed for lack of memory since boot; 0 where it does not tell."""
    with suppress(OSError, ValueError):
        for line in _VMSTAT.read_text().splitlines():
            key, _, count = line.partition(" ")
            if key == "oom_kill":
                return int(count)
    return 0


def _living(belongs: Callable[[int], bool]) -> list[psutil.Process]:
    found = []
    for pid in psutil.pids():
        # A process may end, or belong to someone else, between any two of these lines.
        with suppress(OSError, psutil.Error):
            if belongs(pid):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found
