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
        """Take over the recorded process, if it still exists.

        Its end is noticed at once, but its exit code is known only to its parent. Raises
        BackendStartError if it is gone, if another process has its pid, or if its pipes are gone.
        """
        with ExitStack() as undo:
            try:
                if around.pipes is None:
                    raise OSError("adoption is off")
                # First open the pid, then check which process it is.
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
