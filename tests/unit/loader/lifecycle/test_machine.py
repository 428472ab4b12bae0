"""Property tests of the lifecycle: whatever happens, in whatever order, the invariants hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.loader.lifecycle import machine
from services.loader.lifecycle.effects import (
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
from services.loader.lifecycle.events import (
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
    Refused,
    Stable,
    StopReason,
    StopRequested,
)
from services.loader.lifecycle.state import CRASH_LIMIT, RESTING, Lifecycle, Phase

ERROR = RuntimeError("failed")
ASKED = StopReason(Cause.REQUESTED, "asked")
CANDIDATES = st.sampled_from(["a", "b"])
GENERATIONS = st.integers(0, 6)
FAILURES = st.builds(Failure, CANDIDATES, st.just(ERROR), st.booleans(), st.booleans())
EVENTS = st.one_of(
    st.builds(LoadRequested, st.lists(CANDIDATES, max_size=2, unique=True).map(tuple)),
    st.builds(Granted, GENERATIONS),
    st.builds(Refused, GENERATIONS, FAILURES),
    st.builds(Adopted, CANDIDATES),
    st.builds(Answered, GENERATIONS),
    st.builds(Loaded, GENERATIONS),
    st.builds(AttemptFailed, GENERATIONS, FAILURES),
    st.builds(Exited, GENERATIONS, FAILURES),
    st.builds(StopRequested, st.just(ASKED), st.booleans()),
    st.builds(Drained, GENERATIONS),
    st.builds(DrainTimedOut, GENERATIONS),
    st.builds(GroupGone, GENERATIONS),
    st.builds(Stable, GENERATIONS),
    st.builds(BackoffEnded, CANDIDATES),
    st.just(Changed()),
)
PROCESSES = {Phase.STARTING, Phase.LOADING, Phase.READY, Phase.DRAINING, Phase.STOPPING}


def likely(state: Lifecycle) -> list[Event]:
    """The likely next events; purely random events hardly ever make a model ready."""
    at, failure = state.generation, Failure(state.candidate, ERROR)
    failed = AttemptFailed(at, failure)
    events: dict[Phase, list[Event]] = {
        Phase.STOPPED: [LoadRequested(("a",)), LoadRequested(("a", "b"))],
        Phase.WAITING: [Granted(at), Refused(at, failure)],
        Phase.STARTING: [Answered(at), failed, LoadRequested(("a",))],
        Phase.LOADING: [Loaded(at), failed, LoadRequested(("a",))],
        Phase.READY: [StopRequested(ASKED), Exited(at, failure), Stable(at)],
        Phase.DRAINING: [Drained(at), DrainTimedOut(at), LoadRequested(("b",))],
        Phase.STOPPING: [GroupGone(at), StopRequested(ASKED)],
        Phase.BACKOFF: [BackoffEnded("a"), LoadRequested(("b",)), Changed()],
        Phase.FAILED: [Changed(), LoadRequested(("b",))],
    }
    return events[state.phase]


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    state, events = Lifecycle(), []
    for blind in draw(st.lists(st.integers(0, 3).map(lambda n: n == 3), max_size=50)):
        events.append(draw(EVENTS if blind else st.sampled_from(likely(state))))
        state, _ = machine.step(state, events[-1])
    return events


HISTORIES = histories()


def run(events: list[Event]) -> list[tuple[Lifecycle, Event, machine.Step]]:
    state, steps = Lifecycle(), []
    for event in events:
        step = machine.step(state, event)
        steps.append((state, event, step))
        state = step[0]
    return steps


@settings(max_examples=200)
@given(HISTORIES)
def test_an_event_of_an_earlier_generation_changes_nothing(events: list[Event]) -> None:
    for before, event, (after, effects) in run(events):
        if getattr(event, "generation", before.generation) != before.generation:
            assert after == before and effects == ()


@settings(max_examples=200)
@given(HISTORIES)
def test_a_process_is_started_only_when_none_is_there(events: list[Event]) -> None:
    """Invariant 1: a model never has two processes at once, so callers have to share one."""
    running: set[int] = set()
    for before, event, (after, effects) in run(events):
        if isinstance(event, GroupGone) and before.phase is Phase.STOPPING:
            running.discard(event.generation)
        if isinstance(event, Adopted) and after != before:
            running.add(after.generation)
        for effect in effects:
            if isinstance(effect, Start):
                assert not running, "two generations at once"
                running.add(effect.generation)
        assert len(running) <= 1
        assert (after.phase in PROCESSES) == bool(running)


@settings(max_examples=200)
@given(HISTORIES)
def test_nothing_starts_before_it_was_granted_room(events: list[Event]) -> None:
    granted = 0
    for before, event, (_, effects) in run(events):
        if isinstance(event, Granted) and before.phase is Phase.WAITING:
            granted = event.generation if event.generation == before.generation else granted
        for effect in effects:
            if isinstance(effect, Start):
                assert effect.generation == granted


@settings(max_examples=200)
@given(HISTORIES)
def test_each_start_is_followed_by_exactly_one_stop(events: list[Event]) -> None:
    stops: dict[int, int] = {}
    for _, _, (_, effects) in run(events):
        for effect in effects:
            if isinstance(effect, StopGroup):
                stops[effect.generation] = stops.get(effect.generation, 0) + 1
    assert all(count == 1 for count in stops.values())


@settings(max_examples=200)
@given(HISTORIES)
def test_nobody_waits_for_ever(events: list[Event]) -> None:
    """A waiting call is admitted or failed before the model is stopped, failed or in back-off."""
    waiting = False
    for before, event, (after, effects) in run(events):
        if isinstance(event, LoadRequested) and event.candidates:
            waiting = before.phase is not Phase.READY or waiting
        if any(isinstance(effect, AdmitWaiters | FailWaiters) for effect in effects):
            waiting = False
        if waiting:
            assert after.phase not in RESTING, f"left waiting in {after.phase} by {event}"
        if after.phase is Phase.READY:
            assert not waiting


@settings(max_examples=200)
@given(HISTORIES)
def test_room_that_is_asked_for_is_taken_or_given_back(events: list[Event]) -> None:
    asked = False
    for before, event, (after, effects) in run(events):
        if isinstance(event, Granted | Refused) and after != before:
            asked = False  # the request was answered, even if the next candidate asks at once
        for effect in effects:
            if isinstance(effect, AskRoom):
                assert not asked
                asked = True
            if isinstance(effect, LeaveQueue):
                assert asked
                asked = False
        assert asked == (after.phase is Phase.WAITING)


@settings(max_examples=200)
@given(HISTORIES)
def test_a_ready_model_goes_only_when_idle_forced_or_dead(events: list[Event]) -> None:
    """Invariant 4: a ready model stops only after a drain, by force, or when its process exits."""
    for before, event, (after, _) in run(events):
        if before.phase is Phase.READY and after.phase is Phase.STOPPING:
            assert isinstance(event, Exited) or (isinstance(event, StopRequested) and event.force)
        if before.phase is Phase.DRAINING and after.phase is Phase.STOPPING:
            assert isinstance(event, Drained | Exited) or (
                isinstance(event, StopRequested) and event.force
            )


@settings(max_examples=200)
@given(HISTORIES)
def test_only_what_failed_has_to_wait(events: list[Event]) -> None:
    """Invariant 7: a penalty applies to the current candidate only; a change clears all of them."""
    for before, event, (after, effects) in run(events):
        for effect in effects:
            if isinstance(effect, ArmBackoff):
                assert effect.candidate == before.candidate
        if isinstance(event, Changed):
            assert not after.penalties and not after.crashes
            assert after.phase not in (Phase.BACKOFF, Phase.FAILED)


@settings(max_examples=300)
@given(HISTORIES)
def test_a_backoff_has_an_end(events: list[Event]) -> None:
    armed = False
    for before, event, (after, effects) in run(events):
        armed = armed or any(isinstance(effect, ArmBackoff) for effect in effects)
        if after.phase is Phase.BACKOFF and before.phase is not Phase.BACKOFF:
            assert armed
        if isinstance(event, Changed):
            armed = False


def drive(*events: Event, state: Lifecycle | None = None) -> machine.Step:
    effects: tuple[Effect, ...] = ()
    state = state or Lifecycle()
    for event in events:
        state, effects = machine.step(state, event)
    return state, effects


def test_the_straight_way() -> None:
    state, effects = drive(LoadRequested(("a",)))
    assert (state.phase, effects) == (Phase.WAITING, (AskRoom(1, "a"),))
    state, effects = machine.step(state, Granted(1))
    assert (state.phase, effects) == (Phase.STARTING, (Start(1, "a"),))
    state, effects = machine.step(state, Answered(1))
    assert (state.phase, effects) == (Phase.LOADING, (SendLoad(1),))
    state, effects = machine.step(state, Loaded(1))
    assert (state.phase, effects) == (Phase.READY, (AdmitWaiters(1),))
    state, effects = machine.step(state, StopRequested(ASKED))
    assert (state.phase, effects) == (Phase.DRAINING, (Drain(1),))
    state, effects = machine.step(state, Drained(1))
    assert (state.phase, effects) == (Phase.STOPPING, (Detach(1), StopGroup(1, True)))
    state, effects = machine.step(state, GroupGone(1))
    assert (state.phase, effects) == (Phase.STOPPED, ())


STARTING = (LoadRequested(("a",)), Granted(1))
READY = drive(*STARTING, Answered(1), Loaded(1))[0]
FAILURE = Failure("a", ERROR)


def test_the_next_candidate_is_tried_at_once_and_both_have_to_wait_then() -> None:
    state, effects = drive(LoadRequested(("a", "b")), Granted(1), AttemptFailed(1, FAILURE))
    assert ArmBackoff("a", 1) in effects
    state, effects = machine.step(state, GroupGone(1))
    assert effects == (AskRoom(2, "b"),)
    other = Failure("b", ERROR)
    state, effects = drive(Granted(2), AttemptFailed(2, other), state=state)
    assert ArmBackoff("b", 1) in effects
    state, effects = machine.step(state, GroupGone(2))
    assert state.phase is Phase.BACKOFF
    assert effects == (FailWaiters((FAILURE, other)),)


def test_a_candidate_that_works_leaves_the_penalty_of_the_other() -> None:
    state, _ = drive(
        LoadRequested(("a", "b")),
        Granted(1),
        AttemptFailed(1, FAILURE),
        GroupGone(1),
        Granted(2),
        Answered(2),
        Loaded(2),
    )
    assert [penalty.candidate for penalty in state.penalties] == ["a"]


def test_lack_of_memory_is_tried_once_more_with_more_room() -> None:
    lack = Failure("a", ERROR, out_of_memory=True)
    state, effects = drive(*STARTING, AttemptFailed(1, lack))
    assert effects == (StopGroup(1, False),)
    state, effects = machine.step(state, GroupGone(1))
    assert effects == (AskRoom(2, "a", more=True),)
    again, effects = drive(Granted(2), AttemptFailed(2, lack), state=state)
    assert ArmBackoff("a", 1) in effects
    assert machine.step(again, GroupGone(2))[0].phase is Phase.BACKOFF
    refused, effects = machine.step(state, Refused(2, Failure("a", ERROR)))
    assert refused.phase is Phase.BACKOFF
    assert effects == (ArmBackoff("a", 1), FailWaiters((lack,)))


def test_no_room_is_no_fault_of_the_model() -> None:
    state, effects = drive(LoadRequested(("a",)), Refused(1, FAILURE))
    assert state.phase is Phase.STOPPED and not state.penalties
    assert effects == (FailWaiters((FAILURE,)),)


def test_the_first_crash_reloads_at_once_and_the_second_waits() -> None:
    state, effects = drive(Exited(1, FAILURE), state=READY)
    assert effects == (CutCalls(1, FAILURE), StopGroup(1, False))
    state, _ = drive(GroupGone(1), LoadRequested(("a",)), state=state)
    assert state.phase is Phase.WAITING
    state, _ = drive(Granted(2), Answered(2), Loaded(2), Exited(2, FAILURE), state=state)
    state, effects = machine.step(state, GroupGone(2))
    assert state.phase is Phase.BACKOFF and effects[0] == ArmBackoff("a", 1)


def crash(state: Lifecycle) -> machine.Step:
    state, _ = drive(BackoffEnded("a"), LoadRequested(("a",)), state=state)
    at = state.generation
    return drive(
        Granted(at),
        Answered(at),
        Loaded(at),
        Exited(at, FAILURE),
        GroupGone(at),
        state=state,
    )


def test_a_crash_loop_ends_in_quarantine() -> None:
    state = Lifecycle()
    for number in range(1, CRASH_LIMIT + 1):
        assert not state.quarantined, number
        state, effects = crash(state)
    assert state.quarantined
    assert ArmBackoff("a", CRASH_LIMIT - 1, quarantine=True) in effects
    assert not machine.step(state, Changed())[0].quarantined


def test_a_stable_time_forgets_earlier_crashes() -> None:
    state, _ = drive(Exited(1, FAILURE), GroupGone(1), LoadRequested(("a",)), state=READY)
    state, _ = drive(Granted(2), Answered(2), Loaded(2), Stable(2), state=state)
    state, _ = drive(Exited(2, FAILURE), GroupGone(2), state=state)
    assert state.phase is Phase.STOPPED


def test_a_change_ends_the_backoff() -> None:
    state, _ = drive(*STARTING, AttemptFailed(1, FAILURE), GroupGone(1))
    assert state.phase is Phase.BACKOFF
    state, effects = machine.step(state, Changed())
    assert state.phase is Phase.STOPPED and effects == (DisarmBackoff(),)


def test_busy_calls_refuse_the_stop_and_the_model_serves_on() -> None:
    state, _ = machine.step(READY, StopRequested(ASKED))
    state, effects = machine.step(state, DrainTimedOut(1))
    assert state.phase is Phase.READY
    assert effects == (RefuseStop(1), AdmitWaiters(1))


def test_a_second_wish_to_unload_does_not_cut_the_calls() -> None:
    state, effects = drive(
        StopRequested(ASKED),
        LoadRequested(("a",)),
        StopRequested(ASKED),
        state=READY,
    )
    assert state.phase is Phase.DRAINING and not state.reload
    assert not any(isinstance(effect, CutCalls | StopGroup) for effect in effects)
    state, _ = drive(Drained(1), GroupGone(1), state=state)
    assert state.phase is Phase.STOPPED


def test_force_calls_off_the_load_that_was_to_follow() -> None:
    state, effects = drive(
        StopRequested(ASKED),
        LoadRequested(("a",)),
        StopRequested(ASKED, force=True),
        state=READY,
    )
    assert any(isinstance(effect, FailWaiters) for effect in effects)
    state, effects = machine.step(state, GroupGone(1))
    assert state.phase is Phase.STOPPED and effects == ()


def test_a_load_asked_for_while_stopping_follows_the_stop() -> None:
    state, _ = drive(StopRequested(ASKED), LoadRequested(("b",)), state=READY)
    state, effects = drive(Drained(1), GroupGone(1), state=state)
    assert effects == (AskRoom(2, "b"),)


def test_a_stop_leaves_the_queue() -> None:
    state, effects = drive(LoadRequested(("a",)), StopRequested(ASKED))
    assert state.phase is Phase.STOPPED
    assert LeaveQueue(1) in effects
