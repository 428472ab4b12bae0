"""How far an operation is: phases, bytes over all files, rate and time left."""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# Long enough to smooth over single reads, short enough to show a change while somebody looks.
_RATE_WINDOW: Final = 5.0
# Below this the two ends of the window are too close to divide by.
_RATE_MINIMUM: Final = 0.25


class Phase(enum.StrEnum):
    """Where an operation stands."""

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
        """Whether nothing comes after it."""
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
        """Begin queued; `percent` is where an operation stood that a crash interrupted."""
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
        """Somebody asked to stop for good; without it, work that is stopped goes on later."""
        self._fetched = 0

    def enter(self, phase: Phase, message: str = "") -> None:
        """Say what happens now; a phase that fetches nothing has no rate."""
        if phase is not Phase.DOWNLOADING:
            self._samples.clear()
        self.phase, self.message = phase, message
        self._changed()

    def end(self, phase: Phase) -> None:
        """Say how it ended, to nobody yet: the manager tells when that is recorded."""
        self._samples.clear()
        self.phase, self.message, self.file, self.source = phase, "", "", ""

    def add(self, filename: str, total: int = 0) -> FileProgress:
        """Count a file in; all of them should be, before the first begins."""
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
        """Show what an operation that ended before the last start had come to."""
        self.phase = phase
        file = self.add("", total)
        file.bytes_done = done

    @property
    def done(self) -> int:
        """Bytes that are in place or fetched."""
        return sum(file.bytes_done for file in self._files.values())

    @property
    def total(self) -> int:
        """Bytes of all files; 0 while the size of one is unknown."""
        totals = [file.bytes_total for file in self._files.values()]
        return sum(totals) if totals and all(totals) else 0

    @property
    def percent(self) -> float:
        """0 to 100, never falling, though a source may turn out larger or begin anew."""
        if self.phase is Phase.DONE:
            self._floor = 100.0
        elif total := self.total:
            self._floor = max(self._floor, min(100.0 * self.done / total, 100.0))
        return self._floor

    @property
    def rate(self) -> float:
        """Bytes a second over the last seconds."""
        self._forget()
        if len(self._samples) < 2:
            return 0.0
        (start, first), (_, last) = self._samples[0], self._samples[-1]
        # Up to now and not to the last sample, so that a stall shows.
        seconds = self._clock() - start
        return (last - first) / seconds if seconds >= _RATE_MINIMUM else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds left at this rate, if it is known."""
        rate, total = self.rate, self.total
        return max(total - self.done, 0) / rate if rate > 0 and total else None

    @property
    def fetched(self) -> int:
        """Bytes that came over the network, or from another folder, now."""
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
    """One file's part in it."""

    def __init__(self, progress: Progress, filename: str, total: int) -> None:
        """Count from nothing; `total` may be 0 while it is unknown."""
        self._progress = progress
        self.filename = filename
        self.bytes_done = 0
        self.bytes_total = total

    def resize(self, total: int) -> None:
        """State how many bytes there are to fetch, now that it is known."""
        if total > 0 and total != self.bytes_total:
            self.bytes_total = total
            self._progress._changed()

    def at(self, position: int) -> None:
        """State how many bytes are there without having been fetched now."""
        self.bytes_done = position
        self._progress._changed()

    def arrived(self, count: int) -> None:
        """Count bytes that came now."""
        self.bytes_done += count
        self._progress._arrived(count)

    def begin(self, source: str) -> None:
        """Say that this file is in hand, and where it comes from."""
        self._progress._show(self.filename, source)

    def enter(self, phase: Phase, message: str = "") -> None:
        """Say what happens to this file now."""
        self._progress.enter(phase, message)

    def finish(self) -> None:
        """Count the file as whole."""
        if not self.bytes_total:
            self.bytes_total = max(self.bytes_done, 1)
        self.bytes_done = self.bytes_total
        self._progress._show("", "")
