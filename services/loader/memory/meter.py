"""How much memory one backend has, over all its processes. Blocking; run in a thread."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from services.loader.devices.devices import RAM
from services.loader.devices.gpus import Gpus
from services.loader.processes.interface import MARKER
from services.loader.processes.lookup import group_members, marked_processes

ESCAPEES_INTERVAL: Final = 5.0
"""Seconds between scans for processes that left their backend's group: each scan reads the
environment of every process of the machine (about 20 us each), and such processes start rarely."""

_PSS: Final = re.compile(r"^Pss:\s+([0-9]{1,20}) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Look:
    """The marked processes outside the group, and when they were found."""

    at: float
    processes: tuple[psutil.Process, ...]


class Meter:
    """Measures backends. May be used from any thread."""

    def __init__(
        self,
        gpus: Gpus,
        *,
        proc: Path = Path("/proc"),
        escapees_interval: float = ESCAPEES_INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The arguments are the GPUs to query, and where `/proc` is."""
        self._gpus = gpus
        self._proc = proc
        self._interval = escapees_interval
        self._clock = clock
        self._lock = threading.Lock()
        self._looks: dict[str, _Look] = {}

    def measure(self, group: int, uid: str) -> dict[str, int]:
        """Return bytes by device (`ram`, `gpu0`) for a backend's process group and its instance's
        uid.

        Memory that several processes share counts once among them (PSS), and so do the weights of a
        model's file that are mapped. A device that the backend does not use, or whose driver
        reports nothing, is left out; so is everything if no process is left. Never raises.
        """
        members = group_members(group)
        known = {process.pid for process in members}
        members += [process for process in self._marked(uid) if process.pid not in known]
        measured = {RAM: sum(resident(process, self._proc) for process in members)}
        if members:
            measured |= self._gpus.used_by([process.pid for process in members])
        return {device: size for device, size in measured.items() if size}

    def _marked(self, uid: str) -> tuple[psutil.Process, ...]:
        now = self._clock()
        with self._lock:
            # Outdated entries are dropped, and with them all about instances that have ended.
            self._looks = {
                key: look for key, look in self._looks.items() if now - look.at < self._interval
            }
            look = self._looks.get(uid)
        if look is None:
            look = _Look(now, tuple(marked_processes(MARKER, uid)))
            with self._lock:
                self._looks[uid] = look
        # Remembered by their start time too: a number may belong to another process by now.
        return tuple(process for process in look.processes if process.is_running())


def resident(process: psutil.Process, proc: Path = Path("/proc")) -> int:
    """Return a process's share of the main memory in bytes; 0 if it has ended.

    PSS, which is exact; otherwise USS, which leaves out shared memory; otherwise RSS, which counts
    it in full.
    """
    with suppress(OSError):
        size = parse_rollup((proc / str(process.pid) / "smaps_rollup").read_text())
        if size is not None:
            return size
    # Other systems, kernels before 4.14, and processes of other users.
    try:
        return int(process.memory_full_info().uss)
    except (psutil.AccessDenied, AttributeError):
        with suppress(psutil.Error):
            return int(process.memory_info().rss)
    except (psutil.Error, OSError):
        pass
    return 0


def parse_rollup(text: str) -> int | None:
    """Return the PSS in bytes from `smaps_rollup`; None if it is not given there."""
    found = _PSS.search(text)
    return int(found[1]) * 1024 if found else None
