"""What may happen to a model. An event about an instance carries its generation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Cause(Enum):
    """The kinds of reason for which an instance goes away; the names are those on the wire."""

    REQUESTED = "requested"
    IDLE = "idle"
    BUSY = "busy"
    MEMORY = "memory"
    EVICTED = "evicted"
    CHANGED = "changed"
    CRASHED = "crashed"
    SHUTDOWN = "shutdown"
    LIMITS = "limits"


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why an instance is being stopped."""

    cause: Cause
    text: str
    """The whole reason, for people."""
    for_model: str = ""
    """The model that needs the room, if it is evicted."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, or an instance ended by itself.

    `permanent` failures (a missing file, an unknown backend) do not get better by waiting. Those for
    lack of memory may get better by making room.
    """

    candidate: str
    error: Exception
    permanent: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class LoadRequested:
    """A call needs the model; these backends may hold it, in this order."""

    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The model is another one than room was asked for; these backends may hold it now."""

    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Granted:
    """There is room for the model, and it is reserved."""

    generation: int


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no room for the model, and none can be made in time."""

    generation: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Adopted:
    """A backend that an earlier loader started holds the model already."""

    candidate: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The backend process answers Health."""

    generation: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The backend has read the model."""

    generation: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """Start or load failed; the process may still be there."""

    generation: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended by itself, or the external backend is gone."""

    generation: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class StopRequested:
    """An unload was requested."""

    reason: StopReason
    force: bool = False


@dataclass(frozen=True, slots=True)
class Drained:
    """The last lease has ended."""

    generation: int


@dataclass(frozen=True, slots=True)
class DrainTimedOut:
    """Leases were still held when the drain time ended."""

    generation: int


@dataclass(frozen=True, slots=True)
class GroupGone:
    """The whole process group has ended and its resources are back."""

    generation: int


@dataclass(frozen=True, slots=True)
class Stable:
    """The instance has been ready for so long that what failed before no longer counts."""

    generation: int


@dataclass(frozen=True, slots=True)
class BackoffEnded:
    """The time to wait after the failure of a candidate is over."""

    candidate: str


@dataclass(frozen=True, slots=True)
class Changed:
    """The model's configuration, its files or a backend changed: old failures no longer count."""


Event = (
    LoadRequested
    | Reconfigured
    | Granted
    | Refused
    | Adopted
    | Answered
    | Loaded
    | AttemptFailed
    | Exited
    | StopRequested
    | Drained
    | DrainTimedOut
    | GroupGone
    | Stable
    | BackoffEnded
    | Changed
)
