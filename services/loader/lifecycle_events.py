"""What may happen to a model. An event about an instance carries its generation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, or an instance ended by itself.

    `permanent` failures (a missing file, an unknown backend) do not get better by waiting.
    """

    candidate: str
    error: Exception
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class LoadRequested:
    """A call needs the model; these backends may hold it, in this order."""

    candidates: tuple[str, ...]


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
    """Someone wants the model gone."""

    reason: str
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
    """The time to wait after a failure is over."""

    generation: int


@dataclass(frozen=True, slots=True)
class Changed:
    """The model's configuration, its files or the backend changed: old failures say nothing now."""


Event = (
    LoadRequested
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
