"""Memory settings of a service's process: garbage collection, and returning free memory to the system."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

_THRESHOLDS: Final = (10_000, 20, 20)
"""Python's default (700, 10, 10) collects 14 times as often; a call leaves few cycles."""

_M_ARENA_MAX: Final = -8
"""The constant in glibc's malloc.h."""
_ARENAS: Final = 1

_EVERY: Final = 30.0
"""Seconds between two runs of `tidy_up`."""
_SELDOM: Final = 1000.0
"""The pause is at least this many times the length of a run: at most 0.1 % of the process's time."""
_MUCH: Final = 8 * 1024**2
"""Free bytes worth returning to the system: it takes 3 to 14 ms, and they may be needed again."""


def settle_allocator() -> None:
    """Limit glibc's allocator to one arena; call it before threads start. No effect on other C libraries.

    Otherwise each of gRPC's threads has its own arena, whose free memory no other thread can use.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def settle_memory() -> None:
    """Exclude the objects that exist after the start from garbage collection.

    Calls wait during a collection, and it takes longer the more models there are.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


async def tidy_up(every: float = _EVERY) -> NoReturn:
    """Collect garbage and return free memory to the system, periodically.

    Python collects after a number of new objects; the few that a cancelled call leaves keep its channel,
    and a channel to an ended backend holds 2 MB. The allocator itself returns only the end of its heap,
    which is rarely free.
    """
    free, give_back = _allocator()
    pause = every
    while True:
        await asyncio.sleep(pause)
        began = time.perf_counter()
        gc.collect()
        if free() > _MUCH:
            give_back()
        pause = max(every, (time.perf_counter() - began) * _SELDOM)


class _MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _allocator() -> tuple[Callable[[], int], Callable[[], object]]:
    """Return functions for the number of free bytes and for returning them; no-ops before glibc 2.33."""
    library = ctypes.CDLL(None)
    try:
        info, trim = library.mallinfo2, library.malloc_trim
    except AttributeError:
        return (lambda: 0), (lambda: None)
    info.restype = _MallocInfo
    return (lambda: int(info().fordblks)), (lambda: trim(0))
