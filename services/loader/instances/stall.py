"""Distinguishes a slow load from a stalled one, where the backend does nothing at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import psutil

from services.loader.processes.lookup import group_members

from .instance import Instance

T = TypeVar("T")

LOOKS = 10
"""The number of checks within the time after which a load counts as stalled."""
_LONGEST_STEP = 5.0


class StalledError(Exception):
    """The backend did nothing for the whole time."""


async def unless_stalled(
    work: Coroutine[Any, Any, T], activity: Callable[[], Awaitable[object]], timeout: float
) -> T:
    """Return what `work` returns; cancel it and raise StalledError if `activity` does not change for `timeout` s."""
    task = asyncio.ensure_future(work)
    step = min(timeout / LOOKS, _LONGEST_STEP)
    try:
        seen, since = await activity(), time.monotonic()
        while not (await asyncio.wait([task], timeout=step))[0]:
            now = await activity()
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since >= timeout:
                raise StalledError
        return await task
    finally:
        task.cancel()


def group_activity(pgid: int) -> tuple[float, int, int]:
    """Return processor seconds, bytes read and written, and memory of a group; blocking.

    A process that reads a model uses some of each. Reads from the page cache count too (`rchar`).
    """
    seconds, transferred, memory = 0.0, 0, 0
    for process in group_members(pgid):
        try:
            with process.oneshot():
                times = process.cpu_times()
                seconds += times.user + times.system
                memory += process.memory_info().rss
                counters = process.io_counters()
                transferred += getattr(counters, "read_chars", counters.read_bytes)
                transferred += counters.write_bytes
        except (psutil.Error, AttributeError, NotImplementedError):
            continue  # it ended, or the system does not count this
    return seconds, transferred, memory


async def activity(instance: Instance) -> object:
    """Return something that changes whenever a backend does anything: works, reads, or writes a line."""
    if instance.process is None:
        return None
    return await asyncio.to_thread(group_activity, instance.process.pid)
