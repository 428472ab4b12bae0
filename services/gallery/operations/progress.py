"""The progress of an operation: phase, bytes of all files, rate and remaining time."""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# Long enough to smooth single reads, short enough to show a change soon.
_RATE_WINDOW: Final = 5.0
# Below this the two ends of the window are too close to divide by.
_RATE_MINIMUM: Final = 0.25


class Phase(enum.StrEnum):
    """A phase of an operation."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    EXTRACTING = "extracting"
    COMMITTING = "committing"
    REMOVING = "removing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether it is final."""
        return self in (Phase.DONE, Phase.FAILED, Phase.CANCELLED)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far an operation is at one moment."""

    phase: Phase
    message: str
    file: str
    source: str
    done: int
    total: int
    percent: float
    rate: float
    eta: float | None


class Progress:
    """One operation's progress; `changed` is called after each change, and must be cheap."""

    def __init__(
        self,
        changed: Callable[[], None] = lambda: None,
        *,
        percent: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`percent` is the progress before a restart."""
        self.phase = Phase.QUEUED
        self.message = ""
        self.file = ""
        self.source = ""
        self._files: dict[str, FileProgress] = {}
        self._floor = percent
        self._changed = changed
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()
        self.cancel_requested = False
        """A client cancelled the operation; otherwise stopped work is resumed later."""
        self._fetched = 0

    def enter(self, phase: Phase, message: str = "") -> None:
        """Set the phase and the message; the rate is reset outside of downloads."""
        if phase is not Phase.DOWNLOADING:
            self._samples.clear()
        self.phase, self.message = phase, message
        self._changed()

    def end(self, phase: Phase) -> None:
        """Set the final phase without a call of `changed`: the manager publishes it once it is recorded."""
        self._samples.clear()
        self.phase, self.message, self.file, self.source = phase, "", "", ""

    def add(self, filename: str, total: int = 0) -> FileProgress:
        """Add a file; all files should be added before the first download."""
        return self._files.setdefault(filename, FileProgress(self, filename, total))

    def snapshot(self) -> Snapshot:
        """Return all figures as they are now."""
        return Snapshot(
            phase=self.phase,
            message=self.message,
            file=self.file,
            source=self.source,
            done=self.done,
            total=self.total,
            percent=self.percent,
            rate=self.rate,
            eta=self.eta,
        )

    def restore(self, phase: Phase, done: int, total: int) -> None:
        """Restore the figures of an operation that ended before the last start."""
        self.phase = phase
        file = self.add("", total)
        file.bytes_done = done

    @property
    def done(self) -> int:
        """Bytes in place or downloaded."""
        return sum(file.bytes_done for file in self._files.values())

    @property
    def total(self) -> int:
        """Bytes of all files; 0 while the size of one is unknown."""
        totals = [file.bytes_total for file in self._files.values()]
        return sum(totals) if totals and all(totals) else 0

    @property
    def percent(self) -> float:
        """0 to 100; it never falls, even if a download turns out larger or restarts."""
        if self.phase is Phase.DONE:
            self._floor = 100.0
        elif total := self.total:
            self._floor = max(self._floor, min(100.0 * self.done / total, 100.0))
        return self._floor

    @property
    def rate(self) -> float:
        """Bytes per second, averaged over the last seconds."""
        self._forget()
        if len(self._samples) < 2:
            return 0.0
        (start, first), (_, last) = self._samples[0], self._samples[-1]
        # Up to now and not to the last sample, so that a stall shows.
        seconds = self._clock() - start
        return (last - first) / seconds if seconds >= _RATE_MINIMUM else 0.0

    @property
    def eta(self) -> float | None:
        """The remaining seconds at this rate, if known."""
        rate, total = self.rate, self.total
        return max(total - self.done, 0) / rate if rate > 0 and total else None

    @property
    def fetched(self) -> int:
        """Bytes that were downloaded or copied in this run."""
        return self._fetched

    def _arrived(self, count: int) -> None:
        if not self._samples:
            self._samples.append((self._clock(), self._fetched))
        self._fetched += count
        self._samples.append((self._clock(), self._fetched))
        self._forget()
        self._changed()

    def _forget(self) -> None:
        oldest = self._clock() - _RATE_WINDOW
        while len(self._samples) > 1 and self._samples[1][0] < oldest:
            self._samples.popleft()

    def _show(self, file: str, source: str) -> None:
        self.file, self.source = file, source
        self._changed()


class FileProgress:
    """The progress of one file."""

    def __init__(self, progress: Progress, filename: str, total: int) -> None:
        """`total` is 0 while it is unknown."""
        self._progress = progress
        self.filename = filename
        self.bytes_done = 0
        self.bytes_total = total

    def resize(self, total: int) -> None:
        """Set the size of the file, once it is known."""
        if total > 0 and total != self.bytes_total:
            self.bytes_total = total
            self._progress._changed()

    def at(self, position: int) -> None:
        """Set the number of bytes that were already there."""
        self.bytes_done = position
        self._progress._changed()

    def arrived(self, count: int) -> None:
        """Count downloaded bytes."""
        self.bytes_done += count
        self._progress._arrived(count)

    def begin(self, source: str) -> None:
        """Show this file and its source as the current ones."""
        self._progress._show(self.filename, source)

    def enter(self, phase: Phase, message: str = "") -> None:
        """Set the phase of the operation."""
        self._progress.enter(phase, message)

    def finish(self) -> None:
        """Mark the file as complete."""
        if not self.bytes_total:
            self.bytes_total = max(self.bytes_done, 1)
        self.bytes_done = self.bytes_total
        self._progress._show("", "")
