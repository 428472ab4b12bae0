"""The code common to processes that we started and those that we took over: the group and its end.

A local backend runs in a session of its own, so that its whole process group can be ended together,
and carries a marker in its environment, by which helpers that left the group are found too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import psutil

from services.common.errors import DeadlineError
from services.common.tasks import wait_until

from .interface import MARKER, Exit, GroupWatch
from .lookup import listens_on, own_group, processes_of
from .pipes import STREAMS, LineSink, NamedPipes, pump

_LAST_WORDS = 0.5
"""Seconds for a pipe to close after its process group is gone; only a passed-on descriptor needs more."""


@dataclass(slots=True)
class Surroundings:
    """Objects that all local processes share."""

    watch: GroupWatch
    stop_timeout: float
    """Seconds from SIGTERM to SIGKILL."""
    kill_timeout: float
    """Seconds from SIGKILL until the group must be gone."""
    pipes: NamedPipes | None = None
    """Pipes for their output if they may outlive this process."""


class ProcessGroup(ABC):
    """A process, its group, and those that left the group."""

    def __init__(
        self,
        pid: int,
        uid: str,
        around: Surroundings,
        outputs: Sequence[IO[bytes] | None],
        sink: LineSink,
    ) -> None:
        """Begin to read its output: stdout, stderr."""
        self._pid = pid
        self._uid = uid
        self._marker = f"{MARKER}={uid}"
        self._around = around
        self._kept = False
        loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = loop.create_future()
        self._exit_fd = -1
        # Both pipes are read until they close: a full pipe would block the backend forever.
        self._readers = [
            loop.create_task(pump(stream, pipe, sink, ended=self._exit.done))
            for stream, pipe in zip(STREAMS, outputs, strict=True)
        ]

    @property
    def pid(self) -> int:
        """The first process's pid, which is also the group's id."""
        return self._pid

    @abstractmethod
    def _how_it_ended(self) -> Exit:
        """Return how the first process ended; called once, after its end."""

    @abstractmethod
    def _leads(self) -> bool:
        """Whether the pid surely still belongs to the first process, so the group is ours."""

    @abstractmethod
    def _release_pid(self) -> None:
        """Called when the group is empty: the system may reuse the pid."""

    async def wait(self) -> Exit:
        """Return when the first process has ended."""
        return await asyncio.shield(self._exit)

    async def drain_output(self, timeout: float) -> None:
        """Wait until what was written before the end has been read, at most `timeout` seconds."""
        if self._readers:
            await asyncio.wait(self._readers, timeout=timeout)

    async def owns_port(self, port: int) -> bool:
        """Whether the first process or one of its helpers listens on the port."""

        def owns() -> bool:
            return any(listens_on(process, port) for process in self._members())

        return await asyncio.to_thread(owns)

    def keep(self) -> bool:
        """Let it outlive a crash of this process from now on; False if its pipes would break."""
        if self._around.pipes is None or self._exit.done():
            return False
        self._kept = True
        self._around.watch.keep(self._pid, self._uid)
        return True

    def leave(self) -> bool:
        """Release it without ending it, for the next loader; False if it is not kept."""
        if not self._kept or self._exit.done():
            return False
        self._stop_watching()
        for reader in self._readers:
            reader.cancel()
        return True

    async def stop(self, *, graceful: bool) -> bool:
        """SIGTERM to the group, SIGKILL when the time is over or at once; True when all are gone."""
        if self._kept:
            self._kept = False
            self._around.watch.add(self._pid, self._uid)
        if graceful and not self._exit.done():
            self._signal(signal.SIGTERM)
            await self._group_ends(self._around.stop_timeout)
        gone = await self._kill_all()
        if gone:
            await self.drain_output(_LAST_WORDS)
            self._around.watch.remove(self._pid, self._uid)
            self._release_pid()
            if self._around.pipes is not None:
                self._around.pipes.remove(self._uid)
        for reader in self._readers:
            reader.cancel()
        return gone

    def _watch_exit(self, descriptor: int) -> None:
        """Watch for the end through a pidfd: immediate, thread-free and safe against pid reuse."""
        self._exit_fd = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._exit_seen)

    def _exit_seen(self) -> None:
        self._stop_watching()
        self._ended(self._how_it_ended())

    def _stop_watching(self) -> None:
        descriptor, self._exit_fd = self._exit_fd, -1
        if descriptor >= 0:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def _ended(self, how: Exit) -> None:
        if not self._exit.done():
            self._exit.set_result(how)

    async def _group_ends(self, timeout: float) -> None:
        """Wait, for at most the given time, until the group has ended by itself."""
        began = time.monotonic()
        await asyncio.wait([self._exit], timeout=timeout)
        # A shell that did not exec its program dies at once; the backend behind it may need its time.
        with suppress(DeadlineError):
            await wait_until(
                self._group_has_ended,
                timeout=max(timeout - (time.monotonic() - began), 0),
                what=f"end of group {self._pid}",
            )

    async def _group_has_ended(self) -> bool:
        if not self._exit.done():
            return False
        return not await asyncio.to_thread(self._group)

    def _group(self) -> list[psutil.Process]:
        return own_group(self._pid, self._marker, leads=self._leads())

    async def _kill_all(self) -> bool:
        def ended() -> bool:
            # Repeat it: a group may still be forking while it is being killed.
            self._signal(signal.SIGKILL)
            members = self._members()
            for process in members:
                with suppress(psutil.Error):
                    process.kill()
            return not members

        async def gone() -> bool:
            return self._exit.done() and await asyncio.to_thread(ended)

        self._signal(signal.SIGKILL)
        try:
            await wait_until(gone, timeout=self._around.kill_timeout, what=f"end of {self._pid}")
        except DeadlineError:
            return False
        return True

    def _members(self) -> list[psutil.Process]:
        return processes_of(self._pid, self._marker, leads=self._leads())

    def _signal(self, number: signal.Signals) -> None:
        if self._leads():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, number)
