"""What must be done about an event; the supervisor does it and reports back with further events."""

from __future__ import annotations

from dataclasses import dataclass

from .events import Failure


@dataclass(frozen=True, slots=True)
class AskRoom:
    """Ask the scheduler for room; report `Granted` or `Refused`."""

    generation: int
    candidate: str
    more: bool = False
    """The last try ended for lack of memory: the estimate was too low."""


@dataclass(frozen=True, slots=True)
class LeaveQueue:
    """Take the wish for room back."""

    generation: int


@dataclass(frozen=True, slots=True)
class Start:
    """Spawn or connect to the backend, and wait until it answers."""

    generation: int
    candidate: str


@dataclass(frozen=True, slots=True)
class SendLoad:
    """Tell the backend to read the model."""

    generation: int


@dataclass(frozen=True, slots=True)
class AdmitWaiters:
    """Give a lease to every call that waits for the model."""

    generation: int


@dataclass(frozen=True, slots=True)
class FailWaiters:
    """Tell every call that waits that the load failed, and why."""

    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """Report `Drained` when the last lease has ended, or `DrainTimedOut`."""

    generation: int


@dataclass(frozen=True, slots=True)
class CutCalls:
    """End the calls in progress: with the failure, or as unloaded if there is none."""

    generation: int
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Detach:
    """End the probes and idle connections of an instance that has no calls."""

    generation: int


@dataclass(frozen=True, slots=True)
class StopGroup:
    """Ask, then terminate, then kill the process group; report `GroupGone` when it is gone."""

    generation: int
    graceful: bool


@dataclass(frozen=True, slots=True)
class ArmBackoff:
    """Report `BackoffEnded` after the delay that belongs to so many failures in a row."""

    candidate: str
    failures: int
    """From 1; 0 means no delay."""
    quarantine: bool = False
    """It crashed too often: wait for the quarantine's time instead."""


@dataclass(frozen=True, slots=True)
class DisarmBackoff:
    """No candidate has to wait any more."""


@dataclass(frozen=True, slots=True)
class RefuseStop:
    """Tell those who asked for the stop that calls were still running."""

    generation: int


Effect = (
    AskRoom
    | LeaveQueue
    | Start
    | SendLoad
    | AdmitWaiters
    | FailWaiters
    | Drain
    | CutCalls
    | Detach
    | StopGroup
    | ArmBackoff
    | DisarmBackoff
    | RefuseStop
)
