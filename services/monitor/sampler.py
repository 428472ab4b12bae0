"""The resources that a process and its descendants use, read with psutil."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import psutil

from services.common.errors import DeadlineError

# Reading one tree takes about a millisecond; more threads are for reads that hang: the memory of a
# process that waits for a broken disk may be unreadable, which must not delay other models' samples.
_THREADS: Final = 4


class ProcessGoneError(Exception):
    """The process has ended (or is a zombie), or its pid belongs to another process now."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The resources of a process tree at one moment, in bytes and seconds."""

    pid: int
    process_count: int
    thread_count: int
    rss: int
    pss: int | None
    """None if the system does not report it for every process of the tree."""
    vms: int
    cpu_percent: float
    cpu_seconds: float
    open_files: int | None
    """None if the system does not report it for every process of the tree."""
    start_time: float
    time: float

    @property
    def memory(self) -> int:
        """The memory that would be freed if the tree ended, as far as the system reports it."""
        return self.rss if self.pss is None else self.pss


@dataclass(slots=True)
class _Baseline:
    """The end of the last measurement of CPU use."""

    clock: float
    cpu_seconds: float
    percent: float


class Sampler:
    """Samples process trees on its own threads, and remembers their last CPU times."""

    def __init__(
        self,
        *,
        timeout: float,
        interval: float,
        start_time_tolerance: float,
        remembered: int,
    ) -> None:
        """See the settings of the same names."""
        self._timeout = timeout
        self._interval = interval
        self._tolerance = start_time_tolerance
        self._remembered = remembered
        self._baselines: OrderedDict[tuple[int, float], _Baseline] = OrderedDict()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="sampler")

    async def sample(self, pid: int, started: float | None = None) -> Sample:
        """Sample the tree of a process that started at this time (if known).

        Raises ProcessGoneError, or DeadlineError if reading it takes too long.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                return await loop.run_in_executor(self._threads, self.read, pid, started)
        except TimeoutError as error:
            raise DeadlineError(
                f"process {pid} could not be sampled within {self._timeout:g} s"
            ) from error

    def read(self, pid: int, started: float | None = None) -> Sample:
        """Like `sample`, in the calling thread."""
        root = self._root(pid, started)
        try:
            key = (pid, root.create_time())
            start_time = time.time() - _age(root)
            tree = _Tree(root)
        except psutil.NoSuchProcess as error:
            raise ProcessGoneError(f"process {pid} is gone") from error
        return Sample(
            pid=pid,
            process_count=tree.processes,
            thread_count=tree.threads,
            rss=tree.rss,
            pss=tree.pss if tree.pss_known else None,
            vms=tree.vms,
            cpu_percent=self._percent(key, tree.cpu_seconds, start_time),
            cpu_seconds=tree.cpu_seconds,
            open_files=tree.open_files if tree.files_known else None,
            start_time=start_time,
            time=time.time(),
        )

    def close(self) -> None:
        """Start no more samples; does not wait for one that hangs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _root(self, pid: int, started: float | None) -> psutil.Process:
        try:
            root = psutil.Process(pid)
            zombie = root.status() == psutil.STATUS_ZOMBIE
            start_time = time.time() - _age(root)
        except (psutil.NoSuchProcess, ValueError, OverflowError) as error:
            raise ProcessGoneError(f"process {pid} is gone") from error
        if zombie:
            raise ProcessGoneError(f"process {pid} has ended and is a zombie")
        if started is not None and abs(start_time - started) > self._tolerance:
            raise ProcessGoneError(f"process {pid} is gone; its pid belongs to another process now")
        return root

    def _percent(self, key: tuple[int, float], cpu_seconds: float, start_time: float) -> float:
        """Return the CPU use since the last measurement; for the first one, since the process started."""
        now = time.monotonic()
        with self._lock:
            last = self._baselines.get(key)
            if last is None:
                elapsed = max(time.time() - start_time, self._interval)
                last = _Baseline(now, cpu_seconds, 100 * cpu_seconds / elapsed)
                self._baselines[key] = last
                if len(self._baselines) > self._remembered:
                    self._baselines.popitem(last=False)
            elif (elapsed := now - last.clock) >= self._interval:
                # A process that left the tree took its CPU time with it; that is not negative use.
                used = max(cpu_seconds - last.cpu_seconds, 0.0)
                last.clock, last.cpu_seconds = now, cpu_seconds
                last.percent = 100 * used / elapsed
                self._baselines.move_to_end(key)
            return last.percent


class _Tree:
    """The sums over a process and its descendants."""

    def __init__(self, root: psutil.Process) -> None:
        self.processes = self.threads = self.rss = self.pss = self.vms = self.open_files = 0
        self.cpu_seconds = 0.0
        self.pss_known = self.files_known = True
        self._add(root)
        for process in _descendants(root):
            try:
                self._add(process)
            except psutil.NoSuchProcess:
                # Ended since the list was made; its CPU time now counts for its parent.
                continue

    def _add(self, process: psutil.Process) -> None:
        with process.oneshot():
            times = process.cpu_times()
            zombie = process.status() == psutil.STATUS_ZOMBIE
            memory = process.memory_info()
            threads = process.num_threads()
        # The CPU time of a child moves to its parent when the parent reaps it, and a zombie still has its
        # own: so the sum over the tree only grows.
        self.cpu_seconds += (
            times.user
            + times.system
            + getattr(times, "children_user", 0.0)
            + getattr(times, "children_system", 0.0)
        )
        if zombie:
            return
        self.processes += 1
        self.threads += threads
        self.rss += memory.rss
        self.vms += memory.vms
        try:
            self.pss += process.memory_full_info().pss
        except (psutil.AccessDenied, AttributeError):
            self.pss_known = False
        try:
            self.open_files += process.num_fds()
        except (psutil.AccessDenied, AttributeError):
            self.files_known = False


def _descendants(root: psutil.Process) -> list[psutil.Process]:
    """Return all descendants, and the other processes of the session that the root leads.

    A backend has its own session; a worker whose parent ended gets another parent, and only its
    session still shows where it belongs.
    """
    found = {process.pid: process for process in root.children(recursive=True)}
    if _session(root.pid) == root.pid:
        for pid in psutil.pids():
            if pid != root.pid and pid not in found and _session(pid) == root.pid:
                try:
                    found[pid] = psutil.Process(pid)
                except psutil.NoSuchProcess:
                    continue
    return list(found.values())


def _age(process: psutil.Process) -> float:
    """Return the seconds since a process was started.

    psutil's create_time includes the time of the boot, which the system knows to a second only; the
    time since the boot is exact to 10 ms.
    """
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return time.time() - process.create_time()
    since_boot = process.create_time() - psutil.boot_time()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (OSError, AttributeError):
        return 0
