"""The state of one model in its lifecycle."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from .events import Failure, StopReason

CRASH_LIMIT = 5
"""Crashes in a row, without a stable time between, after which a model goes into quarantine."""


class Phase(Enum):
    """The phase that a model is in."""

    STOPPED = auto()
    WAITING = auto()
    STARTING = auto()
    LOADING = auto()
    READY = auto()
    DRAINING = auto()
    STOPPING = auto()
    BACKOFF = auto()
    FAILED = auto()


RUNNING = frozenset({Phase.STARTING, Phase.LOADING, Phase.READY, Phase.DRAINING, Phase.STOPPING})
"""Phases in which a process (or a connection) of the current generation may exist."""

RESTING = frozenset({Phase.STOPPED, Phase.BACKOFF, Phase.FAILED})
"""Phases in which no backend runs and no call waits."""


class After(Enum):
    """What follows when a stopping process group is gone."""

    REST = auto()
    """Someone asked for the stop."""
    NEXT_CANDIDATE = auto()
    """The attempt failed; the next candidate is tried, if there is one."""
    MORE_ROOM = auto()
    """The attempt failed for lack of memory; it is tried once more, with more room."""
    CRASHED = auto()
    """The instance ended by itself after it had been ready."""


@dataclass(frozen=True, slots=True)
class Penalty:
    """A candidate that failed, and how often in a row."""

    candidate: str
    count: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The state of one model."""

    phase: Phase = Phase.STOPPED
    generation: int = 0
    candidates: tuple[str, ...] = ()
    """Backends still to try; the first is the current one."""
    failures: tuple[Failure, ...] = ()
    """What failed in this round, or how the last instance ended by itself."""
    penalties: tuple[Penalty, ...] = ()
    """Candidates that failed, until they hold the model or something changes."""
    crashes: int = 0
    """Crashes in a row without a stable time between."""
    crashed: bool = False
    """It ended by itself, and has neither come back nor been stopped on request since."""
    roomier: tuple[str, ...] = ()
    """Candidates that were given more room in this round: once is enough."""
    after: After = After.REST
    reload: tuple[str, ...] = ()
    """Candidates of a load that was asked for while the last instance is still going away."""
    message: str = ""
    """Why the model is in this phase, for people."""
    stop: StopReason | None = None
    """Why the current or last instance goes away, unless it failed to come up."""

    @property
    def candidate(self) -> str:
        """The backend being tried or running; empty if none."""
        return self.candidates[0] if self.candidates else ""

    @property
    def quarantined(self) -> bool:
        """It crashed so often that only a long wait, a change or an operator lets it run again."""
        return self.phase is Phase.BACKOFF and self.crashes >= CRASH_LIMIT
