"""A backend that another loader started: not our child, but ours to watch, to read and to end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Self

from services.common.errors import BackendStartError

from .group import ProcessGroup, Surroundings
from .interface import MARKER, Exit
from .lookup import birth, is_process
from .pipes import LineSink


class AdoptedProcess(ProcessGroup):
    """A process that was taken over, and its group."""

    def __init__(
        self,
        pid: int,
        uid: str,
        born: str,
        descriptor: int,
        around: Surroundings,
        outputs: Sequence[IO[bytes]],
        sink: LineSink,
    ) -> None:
        """Use `take`."""
        super().__init__(pid, uid, around, outputs, sink)
        self._born = born
        self._watch_exit(descriptor)

    @classmethod
    def take(cls, uid: str, pid: int, born: str, around: Surroundings, sink: LineSink) -> Self:
        """Take over the process that was noted, if it is still there.

        It shows as exited at once when it ends, but with what code only its parent would learn.
        Raises BackendStartError if it is gone, is another one by now, or its pipes are gone.
        """
        with ExitStack() as undo:
            try:
                if around.pipes is None:
                    raise OSError("adoption is off")
                # First the hold on whatever has the pid, then the look at what it is.
                descriptor = os.pidfd_open(pid)
                undo.callback(os.close, descriptor)
                if not is_process(pid, born, f"{MARKER}={uid}"):
                    raise ProcessLookupError("it has ended")
                outputs = around.pipes.open(uid)
            except (AttributeError, OSError) as error:
                raise BackendStartError(f"process {pid} cannot be taken over: {error}") from error
            undo.pop_all()
        return cls(pid, uid, born, descriptor, around, outputs, sink)

    def _how_it_ended(self) -> Exit:
        return Exit()

    def _leads(self) -> bool:
        return birth(self._pid) == self._born

    def _release_pid(self) -> None:
        """It was never ours to hold: the system's first process has reaped it."""
