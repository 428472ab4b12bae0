"""How a service's process keeps its memory: what it looks through for garbage, and what it gives back."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

_THRESHOLDS: Final = (10_000, 20, 20)
"""Python's own (700, 10, 10) look 14 times as often; the cycles that a call leaves are few."""

_M_ARENA_MAX: Final = -8
"""As glibc's malloc.h has it."""
_ARENAS: Final = 1

_EVERY: Final = 30.0
"""Seconds between two times of tidying up."""
_SELDOM: Final = 1000.0
"""At least so many times as long as it takes: a thousandth of the process's time at most."""
_MUCH: Final = 8 * 1024**2
"""Bytes that lie free before they are worth giving back: that takes 3 to 14 ms, and they may be needed again."""


def settle_allocator() -> None:
    """Keep the allocator to one arena; before there are threads. Nothing where the C library is not glibc.

    Each of gRPC's threads has one of its own else, and what streams have left in one serves no other.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def settle_memory() -> None:
    """Take what is there after the start for good, so that no search for garbage goes through it again.

    Calls wait for it meanwhile, the longer the more models there are.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


async def tidy_up(every: float = _EVERY) -> NoReturn:
    """Look for garbage and give free memory back to the system, again and again.

    Python looks by the count of objects, of which a cancelled call leaves a few: these hold its channel, and
    a channel to a backend that has ended holds 2 MB. And the allocator gives back only what lies at its
    heap's end, where something always does.
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
    """Return what tells how many bytes lie free, and what gives them back; without glibc 2.33 there are none."""
    library = ctypes.CDLL(None)
    try:
        info, trim = library.mallinfo2, library.malloc_trim
    except AttributeError:
        return (lambda: 0), (lambda: None)
    info.restype = _MallocInfo
    return (lambda: int(info().fordblks)), (lambda: trim(0))
