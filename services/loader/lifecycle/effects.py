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
    """Withdraw the request for memory and a slot."""

    generation: int


@dataclass(frozen=True, slots=True)
class Start:
    """Spawn or connect to the backend, and wait until it answers."""

    generation: int
    candidate: str


@dataclass(frozen=True, slots=True)
class SendLoad:
    """Send LoadModel to the backend."""

    generation: int


@dataclass(frozen=True, slots=True)
class AdmitWaiters:
    """Give a lease to every call that waits for the model."""

    generation: int


@dataclass(frozen=True, slots=True)
class FailWaiters:
    """Fail every call that waits with the reason for the failed load."""

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
    """Report `BackoffEnded` after the delay for this number of consecutive failures."""

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
    """Fail the requests to stop, since calls were still running."""

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
