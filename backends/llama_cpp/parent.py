"""Exiting when the parent dies, so that a killed loader leaves no process behind."""

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping

from .settings import FALSE

log = logging.getLogger(__name__)

SWITCH = "LOCALAI_BACKEND_PARENT_WATCH"
INTERVAL = "LOCALAI_BACKEND_PARENT_WATCH_INTERVAL"
DEFAULT_INTERVAL = 2.0
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}
_PR_SET_PDEATHSIG = 1
# Not SIGKILL or SIGTERM: the kernel sends it also when only the parent's *thread* ends, and then
# it must not do anything.
_NOTICE = signal.SIGUSR2


def interval(text: str) -> float:
    """Seconds between two checks, from `2`, `2s` or `500ms`; the default for anything else."""
    number, scale = text.strip(), 1.0
    for unit, factor in _UNITS.items():
        if number.endswith(unit):
            number, scale = number.removesuffix(unit), factor
            break
    try:
        seconds = float(number) * scale
    except ValueError:
        return DEFAULT_INTERVAL
    return seconds if seconds > 0 else DEFAULT_INTERVAL


def watch(env: Mapping[str, str], parent: int, leave: Callable[[], None]) -> None:
    """Call `leave` once the process `parent` is gone; call this from the main thread.

    `parent` is the parent's id when this process started. Process 1 is never watched: it is the
    container's init, or the parent was already gone.
    """
    if env.get(SWITCH, "").strip().lower() in FALSE or parent == 1:
        return

    def look() -> bool:
        if os.getppid() == parent:
            return False
        log.warning("the parent process %d is gone: leaving", parent)
        leave()
        return True

    if sys.platform == "linux":
        signal.signal(_NOTICE, lambda *_: look())
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(_NOTICE), 0, 0, 0)
    # The parent may have died just before; and elsewhere there is no such signal.
    seconds = interval(env.get(INTERVAL, ""))
    never = threading.Event()

    def watch_on() -> None:
        while not look():
            never.wait(seconds)

    threading.Thread(target=watch_on, name="parent-watch", daemon=True).start()
