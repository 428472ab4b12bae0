"""The choice of a service's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, TypeAlias

from .listen_address import StartError
from .logging import get_logger

EventLoop: TypeAlias = Literal["auto", "asyncio", "uvloop"]
LoopFactory: TypeAlias = Callable[[], asyncio.AbstractEventLoop]

_log = get_logger(__name__)


def loop_factory(wanted: EventLoop) -> LoopFactory | None:
    """Return the factory of the loop; None for asyncio's own.

    `auto` takes uvloop if it is installed. Raises StartError for `uvloop` if it is not.
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
