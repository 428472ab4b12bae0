"""The life of a model as a pure function: `next(state, event) -> (state, effects)`. No I/O, no clock.

One `Lifecycle` stands for one model over all its instances. Everything that happens is an event;
whatever must be done about it is an effect, performed by the supervisor, which reports back with
further events. Events about an instance carry its generation, and those of an earlier one are
dropped: a slow answer of a dead process can never touch its successor.

    STOPPED ─LoadRequested→ STARTING ─Answered→ LOADING ─Loaded→ READY ─StopRequested→ DRAINING
       ↑                        │                  │               │                      │
       │                        └─AttemptFailed────┴───────────────┴─Exited               │
       │                                  ↓                                  Drained, cut ↓
       ├──GroupGone── (asked for) ────────────────── STOPPING ────────────────────────────┘
       └─BackoffEnded─ BACKOFF/FAILED ←─GroupGone── (failed)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

from .lifecycle_effects import (
    AdmitWaiters,
    ArmBackoff,
    CutCalls,
    Drain,
    Effect,
    FailWaiters,
    RefuseStop,
    SendLoad,
    Start,
    StopGroup,
)
from .lifecycle_events import (
    Answered,
    AttemptFailed,
    BackoffEnded,
    Changed,
    Drained,
    DrainTimedOut,
    Event,
    Exited,
    Failure,
    GroupGone,
    Loaded,
    LoadRequested,
    Stable,
    StopRequested,
)

__all__ = [
    "RESTING",
    "RUNNING",
    "AdmitWaiters",
    "After",
    "Answered",
    "ArmBackoff",
    "AttemptFailed",
    "BackoffEnded",
    "Changed",
    "CutCalls",
    "Drain",
    "DrainTimedOut",
    "Drained",
    "Effect",
    "Event",
    "Exited",
    "FailWaiters",
    "Failure",
    "GroupGone",
    "Lifecycle",
    "LoadRequested",
    "Loaded",
    "Phase",
    "RefuseStop",
    "SendLoad",
    "Stable",
    "Start",
    "Step",
    "StopGroup",
    "StopRequested",
    "StoppedError",
    "next",
]


class Phase(Enum):
    """Where a model stands."""

    STOPPED = auto()
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
"""Phases in which nothing runs."""


class After(Enum):
    """What follows when a stopping process group is gone."""

    REST = auto()
    """Someone asked for the stop."""
    NEXT_CANDIDATE = auto()
    """The attempt failed; the next candidate is tried, if there is one."""
    CRASHED = auto()
    """The instance ended by itself after it had been ready."""


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The state of one model."""

    phase: Phase = Phase.STOPPED
    generation: int = 0
    candidates: tuple[str, ...] = ()
    """Backends still to try; the first is the current one."""
    failures: tuple[Failure, ...] = ()
    """What failed in this round."""
    failed_rounds: int = 0
    """Rounds in a row in which every candidate failed, and crashes without a stable time between."""
    after: After = After.REST
    reload: tuple[str, ...] = ()
    """Candidates of a load that was asked for while the last instance is still going away."""
    message: str = ""
    """Why it stands where it stands, for people."""

    @property
    def candidate(self) -> str:
        """The backend being tried or running; empty if none."""
        return self.candidates[0] if self.candidates else ""


Step = tuple[Lifecycle, tuple[Effect, ...]]


def next(state: Lifecycle, event: Event) -> Step:
    """Return the state after `event` and what must be done. An event that does not fit is dropped."""
    generation = getattr(event, "generation", state.generation)
    if generation != state.generation:
        return state, ()
    match event:
        case LoadRequested(candidates):
            return _load_requested(state, candidates)
        case Answered() if state.phase is Phase.STARTING:
            return replace(state, phase=Phase.LOADING), (SendLoad(state.generation),)
        case Loaded(message=message) if state.phase is Phase.LOADING:
            ready = replace(state, phase=Phase.READY, message=message, failures=())
            return ready, (AdmitWaiters(state.generation),)
        case AttemptFailed(failure=failure) if state.phase in (Phase.STARTING, Phase.LOADING):
            return _attempt_failed(state, failure)
        case Exited(failure=failure):
            return _exited(state, failure)
        case StopRequested(reason, force):
            return _stop_requested(state, reason, force)
        case Drained() if state.phase is Phase.DRAINING:
            return replace(state, phase=Phase.STOPPING), (StopGroup(state.generation, True),)
        case DrainTimedOut() if state.phase is Phase.DRAINING:
            kept = replace(state, phase=Phase.READY, message="", reload=())
            return kept, (RefuseStop(state.generation), AdmitWaiters(state.generation))
        case GroupGone() if state.phase is Phase.STOPPING:
            return _group_gone(state)
        case Stable() if state.phase is Phase.READY:
            return replace(state, failed_rounds=0), ()
        case BackoffEnded() if state.phase is Phase.BACKOFF:
            return replace(state, phase=Phase.STOPPED), ()
        case Changed():
            return _changed(state)
    return state, ()


def _start(state: Lifecycle, candidates: tuple[str, ...], failures: tuple[Failure, ...]) -> Step:
    generation = state.generation + 1
    started = replace(
        state,
        phase=Phase.STARTING,
        generation=generation,
        candidates=candidates,
        failures=failures,
        reload=(),
        message="",
    )
    return started, (Start(generation, candidates[0]),)


def _load_requested(state: Lifecycle, candidates: tuple[str, ...]) -> Step:
    if state.phase in (Phase.STOPPED, Phase.FAILED) and candidates:
        return _start(state, candidates, ())
    if state.phase in (Phase.DRAINING, Phase.STOPPING) and candidates:
        # The next instance starts when this one is gone: never two of one model side by side.
        return replace(state, reload=candidates), ()
    return state, ()


def _attempt_failed(state: Lifecycle, failure: Failure) -> Step:
    stopping = replace(
        state,
        phase=Phase.STOPPING,
        after=After.NEXT_CANDIDATE,
        failures=(*state.failures, failure),
        message=str(failure.error),
    )
    return stopping, (StopGroup(state.generation, False),)


def _exited(state: Lifecycle, failure: Failure) -> Step:
    if state.phase in (Phase.STARTING, Phase.LOADING):
        return _attempt_failed(state, failure)
    if state.phase in (Phase.READY, Phase.DRAINING):
        crashed = state.phase is Phase.READY
        stopping = replace(
            state,
            phase=Phase.STOPPING,
            after=After.CRASHED if crashed else After.REST,
            failures=(failure,),
            message=str(failure.error),
        )
        # The main process is gone, but helpers it left behind are not.
        return stopping, (
            CutCalls(state.generation, failure),
            StopGroup(state.generation, False),
        )
    return state, ()


def _stop_requested(state: Lifecycle, reason: str, force: bool) -> Step:
    generation = state.generation
    if state.phase is Phase.READY and not force:
        draining = replace(state, phase=Phase.DRAINING, message=reason, after=After.REST)
        return draining, (Drain(generation),)
    failure = Failure(state.candidate, StoppedError(reason))
    if state.phase is Phase.DRAINING and not force:
        # It is on its way already, and its calls may still end; only what was to follow is called off.
        return replace(state, message=reason, reload=()), (FailWaiters((failure,)),)
    if state.phase in (Phase.READY, Phase.DRAINING):
        stopping = replace(state, phase=Phase.STOPPING, message=reason, after=After.REST, reload=())
        return stopping, (
            FailWaiters((failure,)),
            CutCalls(generation, None),
            StopGroup(generation, True),
        )
    if state.phase in (Phase.STARTING, Phase.LOADING):
        stopping = replace(
            state, phase=Phase.STOPPING, message=reason, after=After.REST, candidates=()
        )
        return stopping, (FailWaiters((failure,)), StopGroup(generation, False))
    if state.phase is Phase.STOPPING:
        # Whatever was to follow the stop (another candidate, a reload) is called off.
        called_off = replace(state, after=After.REST, reload=(), message=reason)
        return called_off, (FailWaiters((failure,)),)
    return state, ()


def _group_gone(state: Lifecycle) -> Step:
    if state.after is After.NEXT_CANDIDATE:
        rest = state.candidates[1:]
        if rest:
            return _start(state, rest, state.failures)
        return _round_failed(state)
    if state.after is After.CRASHED:
        return _crashed(state)
    stopped = replace(state, phase=Phase.STOPPED, candidates=(), failures=())
    if state.reload:
        return _start(stopped, state.reload, ())
    return stopped, ()


def _round_failed(state: Lifecycle) -> Step:
    failures = state.failures
    if all(failure.permanent for failure in failures):
        failed = replace(state, phase=Phase.FAILED, candidates=(), reload=())
        return failed, (FailWaiters(failures),)
    rounds = state.failed_rounds + 1
    waiting = replace(state, phase=Phase.BACKOFF, candidates=(), reload=(), failed_rounds=rounds)
    return waiting, (ArmBackoff(state.generation, rounds), FailWaiters(failures))


def _crashed(state: Lifecycle) -> Step:
    rounds = state.failed_rounds + 1
    if rounds == 1:
        # The first crash after a stable time costs no wait: the next call reloads at once.
        stopped = replace(state, phase=Phase.STOPPED, candidates=(), failed_rounds=rounds)
        if state.reload:
            return _start(stopped, state.reload, ())
        return stopped, ()
    waiting = replace(state, phase=Phase.BACKOFF, candidates=(), reload=(), failed_rounds=rounds)
    # Not a failed load: waiters get the crash as the reason why they must wait.
    return waiting, (ArmBackoff(state.generation, rounds - 1), FailWaiters(state.failures))


def _changed(state: Lifecycle) -> Step:
    cleared = replace(state, failed_rounds=0)
    if state.phase in (Phase.BACKOFF, Phase.FAILED):
        cleared = replace(cleared, phase=Phase.STOPPED, failures=(), message="")
    return cleared, ()


class StoppedError(Exception):
    """The model was stopped on request while calls waited for it."""
