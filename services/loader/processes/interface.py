"""A backend as a process. `Launcher` is the seam: nothing above assumes a local pid."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .pipes import LineSink

__all__ = ["MARKER", "BackendProcess", "Exit", "GroupWatch", "Launcher", "LineSink", "ProcessSpec"]

MARKER = "CORRAL_INSTANCE"
"""Environment variable that names the instance a process belongs to."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """The program to start."""

    uid: str
    """The instance's id, unique over restarts."""
    run_file: Path
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path | None = None
    """Where it runs; None for the run file's folder."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended."""

    code: int | None = None
    """Exit code; None if a signal ended it. With both None only its parent, now gone, could know.
    """
    signal: int | None = None
    out_of_memory: bool = False
    """The kernel killed something for lack of memory while this process ran, and it died by SIGKILL."""

    @property
    def signal_name(self) -> str:
        """The signal's name; empty if there was none."""
        if self.signal is None:
            return ""
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"

    def __str__(self) -> str:
        """Say it for people."""
        if self.signal is None and self.code is None:
            return "ended (its exit code is unknown: an earlier loader had started it)"
        if self.signal is None:
            return f"exited with code {self.code}"
        text = f"was killed by {self.signal_name}"
        return f"{text} (the system ran out of memory)" if self.out_of_memory else text


class BackendProcess(Protocol):
    """A started backend."""

    @property
    def pid(self) -> int:
        """The first process; 0 if it runs elsewhere."""
        ...

    async def wait(self) -> Exit:
        """Return when the first process has ended; may be awaited many times."""
        ...

    async def owns_port(self, port: int) -> bool:
        """Whether a process of this backend listens on the TCP port."""
        ...

    async def drain_output(self, timeout: float) -> None:
        """Wait until what was written before the end has been read, at most `timeout` seconds."""
        ...

    def keep(self) -> bool:
        """Let it outlive a crash of the loader from now on; False if it cannot."""
        ...

    def leave(self) -> bool:
        """Release it without ending it, for the next loader; False if it is not kept."""
        ...

    async def stop(self, *, graceful: bool) -> bool:
        """End everything that belongs to the backend; True when nothing of it is left. Idempotent."""
        ...


class Launcher(Protocol):
    """Starts backends somewhere."""

    async def launch(self, spec: ProcessSpec, sink: LineSink) -> BackendProcess:
        """Start it; raises BackendStartError, whose message names what to fix."""
        ...

    def adopt(self, uid: str, pid: int, birth: str, sink: LineSink) -> BackendProcess:
        """Take over a process that another loader started; BackendStartError if it is gone."""
        ...


class GroupWatch(Protocol):
    """Ends process groups should the loader itself die (see guard.py)."""

    def add(self, pgid: int, uid: str) -> None:
        """Watch over the group of an instance: it ends with this process."""
        ...

    def keep(self, pgid: int, uid: str) -> None:
        """Watch over a group that may outlive this process until the next loader takes it over."""
        ...

    def remove(self, pgid: int, uid: str) -> None:
        """Forget the group of an ended instance, but not a newer group with the same id."""
        ...
