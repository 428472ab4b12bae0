"""What a service's process runs on: its event loop, and when it looks for garbage."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, Literal, TypeAlias

from .binding import StartError
from .logs import get_logger

EventLoop: TypeAlias = Literal["auto", "asyncio", "uvloop"]
LoopFactory: TypeAlias = Callable[[], asyncio.AbstractEventLoop]

_log = get_logger(__name__)

_THRESHOLDS: Final = (10_000, 20, 20)
"""Python's own (700, 10, 10) look 14 times as often; the cycles that a call leaves are few."""


_M_ARENA_MAX: Final = -8
"""As glibc's malloc.h has it."""
_ARENAS: Final = 1


def settle_allocator() -> None:
    """Keep the allocator to one arena; before there are threads. Nothing where the C library is not glibc.

    Each of gRPC's threads has one of its own else, and what streams have left in one serves no other:
    a loader under mixed load grew to 225 MiB instead of 90.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def loop_factory(wanted: EventLoop) -> LoopFactory | None:
    """Return what makes the loop; None for Python's own.

    `auto` takes uvloop where it is installed. Raises StartError if it is asked for and is not.
    """
    if wanted == "asyncio":
        return None
    try:
        uvloop: Any = import_module("uvloop")
    except ImportError as error:
        if wanted == "uvloop":
            raise StartError(
                f"--event-loop uvloop: it cannot be imported ({error}); install it, or take asyncio"
            ) from error
        _log.info("uvloop is not installed; calls cost about a fifth more on asyncio's own loop")
        return None
    factory: LoopFactory = uvloop.new_event_loop
    return factory


def settle_memory() -> None:
    """Take what is there after the start for good, so that no search for garbage goes through it again.

    Calls wait for it meanwhile, the longer the more models there are.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
