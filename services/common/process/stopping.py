"""Stop signals, and a watchdog for stops that hang."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from .logging import get_logger

_log = get_logger(__name__)
_T = TypeVar("_T")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StopWatchdog:
    """Exits a process whose stop hangs, after logging where. A thread, because the loop itself may hang."""

    def __init__(self, give_up: Callable[[int], Any] = os._exit) -> None:
        """`give_up` is called with the exit code, to end the process."""
        self._give_up = give_up
        self._timer: threading.Timer | None = None

    def arm(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        """Exit unless disarmed within `seconds`; a second call replaces the first."""
        self.disarm()
        self._timer = threading.Timer(seconds, self._expired, args=(seconds, loop))
        self._timer.daemon = True
        self._timer.start()

    def disarm(self) -> None:
        """Stop watching: the stop is complete."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        _log.error("the stop hangs; giving up", after_seconds=seconds)
        dump_tasks(loop)
        sys.stderr.flush()
        self._give_up(1)


class StopSignals:
    """SIGTERM and SIGINT: the first starts a stop, the second ends its grace."""

    def __init__(
        self, *, grace: float, limit: float, watchdog: StopWatchdog, watch_fd: int | None = None
    ) -> None:
        """A stop may take `grace` + `limit` seconds after the first signal, `limit` after the second.

        The pipe `watch_fd` counts as a signal when it closes: the parent process is gone.
        """
        self._watch_fd = watch_fd
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._grace = grace
        self._limit = limit
        self._watchdog = watchdog

    async def unless_stopped(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """Return the result of `work`; cancel it and return None at the first signal."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.first.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
            return None
        finally:
            stop.cancel()
            task.cancel()

    def begin_stop(self) -> None:
        """Arm the watchdog, unless a signal has done so: not every stop comes from a signal."""
        if self.first.is_set():
            return
        self._watchdog.arm(self._grace + self._limit, asyncio.get_running_loop())

    def __enter__(self) -> Self:
        """Install the signal handlers."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._caught, number)
        if self._watch_fd is not None:
            loop.add_reader(self._watch_fd, self._parent_gone)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the signal handlers."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        if self._watch_fd is not None:
            loop.remove_reader(self._watch_fd)

    def _parent_gone(self) -> None:
        """Stop as after SIGTERM: the parent process closed its end of the pipe."""
        assert self._watch_fd is not None
        asyncio.get_running_loop().remove_reader(self._watch_fd)
        _log.warning("the parent process is gone")
        self._caught(signal.SIGTERM)

    def _caught(self, number: signal.Signals) -> None:
        if not self.first.is_set():
            _log.info("stopping", signal=number.name, grace_seconds=self._grace)
            self.begin_stop()
            self.first.set()
        elif not self.second.is_set():
            _log.warning("stopping without grace", signal=number.name)
            self._watchdog.arm(self._limit, asyncio.get_running_loop())
            self.second.set()


def dump_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Log where each task of the loop and each thread is, one line each."""
    for task in asyncio.all_tasks(loop):
        _log.error("task", task=task.get_name(), where=_where(task.get_coro()))
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        stack: list[str] = []
        while frame is not None and len(stack) < 12:
            stack.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
            frame = frame.f_back
        _log.error("thread", thread=thread.name, where=" < ".join(stack))


def _where(awaited: Any) -> str:
    """Return the chain of a task's awaits, outermost first; its own stack shows only the outermost."""
    stack: list[str] = []
    while awaited is not None and len(stack) < 40:
        frame = next(
            (f for a in ("cr_frame", "ag_frame", "gi_frame") if (f := getattr(awaited, a, None))),
            None,
        )
        if frame is not None:
            stack.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        awaited = next(
            (
                n
                for a in ("cr_await", "ag_await", "gi_yieldfrom")
                if (n := getattr(awaited, a, None))
            ),
            None,
        )
    return " > ".join(stack) or "?"
