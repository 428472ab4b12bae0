"""Processes' resources: processor time to the nanosecond, and memory as the kernel accounts for it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_CPUCLOCK_SCHED = 2
"""The kernel's clock of a process with all its threads (clock_getcpuclockid(3) returns the same number)."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time that these processes have used; one that has ended counts as 0."""
    total = 0.0
    for pid in pids:
        with suppress(OSError):
            total += time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    return total


def tree(pid: int, *without: int) -> list[int]:
    """Return a process and its descendants, except those in `without` and theirs."""
    if pid in without:
        return []
    found = [pid]
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            found += tree(child.pid, *without)
    return found


def memory(pids: Iterable[int], field: str = "Pss") -> int:
    """Return the bytes of memory of these processes: `Pss`, which divides shared pages among their users, or `Rss`."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{field}:"):
                total += int(line.split()[1]) * 1024
    return total
