"""The life of a model as a pure function: `step(state, event) -> (state, effects)`. No I/O, no clock.

One `Lifecycle` stands for one model over all its instances. Everything that happens is an event;
whatever must be done about it is an effect, performed by the supervisor, which reports back with
further events. Events about an instance carry its generation, and those of an earlier one are
dropped: a slow answer of a dead process can never touch its successor.

    STOPPED ─LoadRequested→ WAITING ─Granted→ STARTING ─Answered→ LOADING ─Loaded→ READY
       ↑                     │    ↑               │                  │              │ StopRequested
       │             Refused │    │               └──AttemptFailed───┴─Exited───┐   ↓
       ├─────────────────────┘    │                                             │ DRAINING
       │                          └─ another candidate, or a try with more room │   │ Drained, cut
       ├──GroupGone── (asked for) ──────────────── STOPPING ←───────────────────┴───┘
       └─BackoffEnded─ BACKOFF/FAILED ←─GroupGone── (all failed)
"""

from __future__ import annotations

from dataclasses import replace

from .effects import (
    AdmitWaiters,
    ArmBackoff,
    AskRoom,
    CutCalls,
    Detach,
    DisarmBackoff,
    Drain,
    Effect,
    FailWaiters,
    LeaveQueue,
    RefuseStop,
    SendLoad,
    Start,
    StopGroup,
)
from .events import (
    Adopted,
    Answered,
    AttemptFailed,
    BackoffEnded,
    Cause,
    Changed,
    Drained,
    DrainTimedOut,
    Event,
    Exited,
    Failure,
    Granted,
    GroupGone,
    Loaded,
    LoadRequested,
    Reconfigured,
    Refused,
    Stable,
    StopReason,
    StopRequested,
)
from .state import CRASH_LIMIT, RESTING, After, Lifecycle, Penalty, Phase

Step = tuple[Lifecycle, tuple[Effect, ...]]


def step(state: Lifecycle, event: Event) -> Step:
    """Return the state after `event` and what must be done. An event that does not fit is dropped."""
    generation = getattr(event, "generation", state.generation)
    if generation != state.generation:
        return state, ()
    match event:
        case LoadRequested(candidates):
            return _load_requested(state, candidates)
        case Reconfigured(candidates) if state.phase is Phase.WAITING and candidates:
            asking, effects = _ask(state, candidates)
            return asking, (LeaveQueue(generation), *effects)
        case Granted() if state.phase is Phase.WAITING:
            starting = replace(state, phase=Phase.STARTING, message="")
            return starting, (Start(state.generation, state.candidate),)
        case Refused(failure=failure) if state.phase is Phase.WAITING:
            return _refused(state, failure)
        case Adopted(candidate) if state.phase in RESTING:
            return _adopted(state, candidate)
        case Answered() if state.phase is Phase.STARTING:
            return replace(state, phase=Phase.LOADING), (SendLoad(state.generation),)
        case Loaded(message=message) if state.phase is Phase.LOADING:
            return _loaded(state, message)
        case AttemptFailed(failure=failure) if state.phase in (Phase.STARTING, Phase.LOADING):
            return _attempt_failed(state, failure)
        case Exited(failure=failure):
            return _exited(state, failure)
        case StopRequested(reason, force):
            return _stop_requested(state, reason, force)
        case Drained() if state.phase is Phase.DRAINING:
            stopping = replace(state, phase=Phase.STOPPING)
            return stopping, (Detach(generation), StopGroup(generation, True))
        case DrainTimedOut() if state.phase is Phase.DRAINING:
            kept = replace(state, phase=Phase.READY, message="", stop=None, reload=())
            return kept, (RefuseStop(state.generation), AdmitWaiters(state.generation))
        case GroupGone() if state.phase is Phase.STOPPING:
            return _group_gone(state)
        case Stable() if state.phase is Phase.READY:
            return replace(state, crashes=0), ()
        case BackoffEnded() if state.phase is Phase.BACKOFF:
            return replace(state, phase=Phase.STOPPED), ()
        case Changed():
            return _changed(state)
    return state, ()


# On the way up


def _ask(
    state: Lifecycle,
    candidates: tuple[str, ...],
    failures: tuple[Failure, ...] = (),
    *,
    roomier: tuple[str, ...] = (),
    more: bool = False,
) -> Step:
    """Every start is asked for: the needs of one candidate are not those of the next."""
    generation = state.generation + 1
    waiting = replace(
        state,
        phase=Phase.WAITING,
        generation=generation,
        candidates=candidates,
        failures=failures,
        roomier=roomier,
        reload=(),
        message="",
        stop=None,
    )
    return waiting, (AskRoom(generation, candidates[0], more),)


def _load_requested(state: Lifecycle, candidates: tuple[str, ...]) -> Step:
    if state.phase in RESTING and candidates:
        return _ask(state, candidates)
    if state.phase in (Phase.DRAINING, Phase.STOPPING) and candidates:
        # The next instance starts when this one is gone: never two of one model side by side.
        return replace(state, reload=candidates), ()
    return state, ()


def _refused(state: Lifecycle, failure: Failure) -> Step:
    if not state.failures:
        # Nothing is wrong with the model or the backend: no penalty, the next call asks again.
        resting = replace(state, phase=Phase.STOPPED, candidates=(), message=str(failure.error))
        return resting, (FailWaiters((failure,)),)
    *earlier, last = state.failures
    if last.candidate != state.candidate:
        return _next_candidate(replace(state, failures=(*state.failures, failure)))
    # The try with more room does not take place: the first failure remains.
    punished, effects = _punished(replace(state, failures=(*earlier, last)), last)
    state, more = _next_candidate(punished)
    return state, (*effects, *more)


def _adopted(state: Lifecycle, candidate: str) -> Step:
    generation = state.generation + 1
    ready = replace(
        state,
        phase=Phase.READY,
        generation=generation,
        candidates=(candidate,),
        failures=(),
        message="",
        stop=None,
        crashed=False,
    )
    return ready, (AdmitWaiters(generation),)


def _loaded(state: Lifecycle, message: str) -> Step:
    penalties = tuple(p for p in state.penalties if p.candidate != state.candidate)
    ready = replace(
        state,
        phase=Phase.READY,
        message=message,
        failures=(),
        roomier=(),
        penalties=penalties,
        crashed=False,
    )
    return ready, (AdmitWaiters(state.generation),)


def _attempt_failed(state: Lifecycle, failure: Failure) -> Step:
    stopping = replace(
        state,
        phase=Phase.STOPPING,
        after=After.NEXT_CANDIDATE,
        failures=(*state.failures, failure),
        message=str(failure.error),
    )
    stop = StopGroup(state.generation, False)
    if failure.out_of_memory and state.candidate not in state.roomier:
        return replace(stopping, after=After.MORE_ROOM), (stop,)
    stopping, effects = _punished(stopping, failure)
    return stopping, (*effects, stop)


def _punished(state: Lifecycle, failure: Failure) -> Step:
    """Count the failure against the current candidate: it alone has to wait before its next try."""
    if failure.permanent:
        return state, ()
    others = tuple(p for p in state.penalties if p.candidate != state.candidate)
    count = 1 + sum(p.count for p in state.penalties if p.candidate == state.candidate)
    penalty = Penalty(state.candidate, count, failure)
    return replace(state, penalties=(*others, penalty)), (ArmBackoff(state.candidate, count),)


def _next_candidate(state: Lifecycle) -> Step:
    rest = state.candidates[1:]
    if rest:
        return _ask(state, rest, state.failures, roomier=state.roomier)
    failures = state.failures
    if all(failure.permanent for failure in failures):
        failed = replace(state, phase=Phase.FAILED, candidates=(), reload=())
        return failed, (FailWaiters(failures),)
    if not any(penalty.failure in failures for penalty in state.penalties):
        # No candidate has to wait: its penalty was lifted, or there was only no room for it.
        stopped = replace(state, phase=Phase.STOPPED, candidates=(), reload=())
        return stopped, (FailWaiters(failures),)
    waiting = replace(state, phase=Phase.BACKOFF, candidates=(), reload=())
    return waiting, (FailWaiters(failures),)


# On the way down


def _exited(state: Lifecycle, failure: Failure) -> Step:
    if state.phase in (Phase.STARTING, Phase.LOADING):
        return _attempt_failed(state, failure)
    if state.phase in (Phase.READY, Phase.DRAINING):
        crashed = state.phase is Phase.READY
        stopping = replace(
            state,
            phase=Phase.STOPPING,
            crashed=crashed,
            after=After.CRASHED if crashed else After.REST,
            failures=(failure,),
            message=str(failure.error),
            stop=StopReason(Cause.CRASHED, str(failure.error)),
        )
        # The main process is gone, but helpers it left behind are not.
        return stopping, (
            CutCalls(state.generation, failure),
            StopGroup(state.generation, False),
        )
    return state, ()


def _stop_requested(state: Lifecycle, reason: StopReason, force: bool) -> Step:
    state = replace(state, crashed=False)
    generation = state.generation
    failure = Failure(state.candidate, StoppedError(reason.text))
    if state.phase is Phase.WAITING:
        called_off = replace(
            state, phase=Phase.STOPPED, candidates=(), failures=(), message=reason.text
        )
        return called_off, (LeaveQueue(generation), FailWaiters((failure,)))
    if state.phase is Phase.READY and not force:
        draining = replace(
            state, phase=Phase.DRAINING, message=reason.text, stop=reason, after=After.REST
        )
        if reason.cause is Cause.SHUTDOWN:
            # There is no next instance for the calls that wait for a place.
            return draining, (FailWaiters((failure,)), Drain(generation))
        return draining, (Drain(generation),)
    if state.phase is Phase.DRAINING and not force:
        # It is on its way already, and its calls may still end; only what was to follow is called off.
        return replace(state, message=reason.text, stop=reason, reload=()), (
            FailWaiters((failure,)),
        )
    if state.phase in (Phase.READY, Phase.DRAINING):
        stopping = replace(
            state,
            phase=Phase.STOPPING,
            message=reason.text,
            stop=reason,
            after=After.REST,
            reload=(),
        )
        return stopping, (
            FailWaiters((failure,)),
            CutCalls(generation, None),
            StopGroup(generation, True),
        )
    if state.phase in (Phase.STARTING, Phase.LOADING):
        stopping = replace(
            state,
            phase=Phase.STOPPING,
            message=reason.text,
            stop=reason,
            after=After.REST,
            candidates=(),
        )
        return stopping, (FailWaiters((failure,)), StopGroup(generation, False))
    if state.phase is Phase.STOPPING:
        # Whatever was to follow the stop (another candidate, a reload) is called off.
        called_off = replace(state, after=After.REST, reload=(), message=reason.text)
        return called_off, (FailWaiters((failure,)),)
    return state, ()


def _group_gone(state: Lifecycle) -> Step:
    match state.after:
        case After.NEXT_CANDIDATE:
            return _next_candidate(state)
        case After.MORE_ROOM:
            roomier = (*state.roomier, state.candidate)
            return _ask(state, state.candidates, state.failures, roomier=roomier, more=True)
        case After.CRASHED:
            return _crashed(state)
    stopped = replace(state, phase=Phase.STOPPED, candidates=(), failures=())
    if state.reload:
        return _ask(stopped, state.reload)
    return stopped, ()


def _crashed(state: Lifecycle) -> Step:
    crashes = state.crashes + 1
    if crashes == 1:
        # The first crash after a stable time costs no wait: the next call reloads at once.
        stopped = replace(state, phase=Phase.STOPPED, candidates=(), crashes=crashes)
        if state.reload:
            return _ask(stopped, state.reload)
        return stopped, ()
    candidate = state.candidate
    waiting = replace(state, phase=Phase.BACKOFF, candidates=(), reload=(), crashes=crashes)
    arm = ArmBackoff(candidate, crashes - 1, quarantine=crashes >= CRASH_LIMIT)
    # Not a failed load: waiters get the crash as the reason why they must wait.
    return waiting, (arm, FailWaiters(state.failures))


def _changed(state: Lifecycle) -> Step:
    cleared = replace(state, crashes=0, penalties=())
    if state.phase in (Phase.BACKOFF, Phase.FAILED):
        cleared = replace(cleared, phase=Phase.STOPPED, failures=(), message="")
    return cleared, (DisarmBackoff(),)


class StoppedError(Exception):
    """The model was stopped on request while calls waited for it."""
