"""Property tests of the lifecycle: whatever happens, in whatever order, the invariants hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.loader.lifecycle import machine as life
from services.loader.lifecycle.machine import Cause, Failure, Lifecycle, Phase, StopReason

ERROR = RuntimeError("failed")
ASKED = StopReason(Cause.REQUESTED, "asked")
CANDIDATES = st.sampled_from(["a", "b"])
GENERATIONS = st.integers(0, 6)
FAILURES = st.builds(Failure, CANDIDATES, st.just(ERROR), st.booleans(), st.booleans())
EVENTS = st.one_of(
    st.builds(life.LoadRequested, st.lists(CANDIDATES, max_size=2, unique=True).map(tuple)),
    st.builds(life.Granted, GENERATIONS),
    st.builds(life.Refused, GENERATIONS, FAILURES),
    st.builds(life.Adopted, CANDIDATES),
    st.builds(life.Answered, GENERATIONS),
    st.builds(life.Loaded, GENERATIONS),
    st.builds(life.AttemptFailed, GENERATIONS, FAILURES),
    st.builds(life.Exited, GENERATIONS, FAILURES),
    st.builds(life.StopRequested, st.just(ASKED), st.booleans()),
    st.builds(life.Drained, GENERATIONS),
    st.builds(life.DrainTimedOut, GENERATIONS),
    st.builds(life.GroupGone, GENERATIONS),
    st.builds(life.Stable, GENERATIONS),
    st.builds(life.BackoffEnded, CANDIDATES),
    st.just(life.Changed()),
)
PROCESSES = {Phase.STARTING, Phase.LOADING, Phase.READY, Phase.DRAINING, Phase.STOPPING}


def likely(state: Lifecycle) -> list[life.Event]:
    """What mostly happens next; what is drawn blindly hardly ever gets a model to be ready."""
    at, failure = state.generation, Failure(state.candidate, ERROR)
    failed = life.AttemptFailed(at, failure)
    return {
        Phase.STOPPED: [life.LoadRequested(("a",)), life.LoadRequested(("a", "b"))],
        Phase.WAITING: [life.Granted(at), life.Refused(at, failure)],
        Phase.STARTING: [life.Answered(at), failed, life.LoadRequested(("a",))],
        Phase.LOADING: [life.Loaded(at), failed, life.LoadRequested(("a",))],
        Phase.READY: [life.StopRequested(ASKED), life.Exited(at, failure), life.Stable(at)],
        Phase.DRAINING: [life.Drained(at), life.DrainTimedOut(at), life.LoadRequested(("b",))],
        Phase.STOPPING: [life.GroupGone(at), life.StopRequested(ASKED)],
        Phase.BACKOFF: [life.BackoffEnded("a"), life.LoadRequested(("b",)), life.Changed()],
        Phase.FAILED: [life.Changed(), life.LoadRequested(("b",))],
    }[state.phase]


@st.composite
def histories(draw: st.DrawFn) -> list[life.Event]:
    state, events = Lifecycle(), []
    for blind in draw(st.lists(st.integers(0, 3).map(lambda n: n == 3), max_size=50)):
        events.append(draw(EVENTS if blind else st.sampled_from(likely(state))))
        state, _ = life.next(state, events[-1])
    return events


HISTORIES = histories()


def run(events: list[life.Event]) -> list[tuple[Lifecycle, life.Event, life.Step]]:
    state, steps = Lifecycle(), []
    for event in events:
        step = life.next(state, event)
        steps.append((state, event, step))
        state = step[0]
    return steps


@settings(max_examples=200)
@given(HISTORIES)
def test_an_event_of_an_earlier_generation_changes_nothing(events: list[life.Event]) -> None:
    for before, event, (after, effects) in run(events):
        if getattr(event, "generation", before.generation) != before.generation:
            assert after == before and effects == ()


@settings(max_examples=200)
@given(HISTORIES)
def test_a_process_is_started_only_when_none_is_there(events: list[life.Event]) -> None:
    """Invariant 1: two of one model never run side by side, so callers can only share one."""
    running: set[int] = set()
    for before, event, (after, effects) in run(events):
        if isinstance(event, life.GroupGone) and before.phase is Phase.STOPPING:
            running.discard(event.generation)
        if isinstance(event, life.Adopted) and after != before:
            running.add(after.generation)
        for effect in effects:
            if isinstance(effect, life.Start):
                assert not running, "two generations at once"
                running.add(effect.generation)
        assert len(running) <= 1
        assert (after.phase in PROCESSES) == bool(running)


@settings(max_examples=200)
@given(HISTORIES)
def test_nothing_starts_before_it_was_granted_room(events: list[life.Event]) -> None:
    granted = 0
    for before, event, (_, effects) in run(events):
        if isinstance(event, life.Granted) and before.phase is Phase.WAITING:
            granted = event.generation if event.generation == before.generation else granted
        for effect in effects:
            if isinstance(effect, life.Start):
                assert effect.generation == granted


@settings(max_examples=200)
@given(HISTORIES)
def test_each_start_is_followed_by_exactly_one_stop(events: list[life.Event]) -> None:
    stops: dict[int, int] = {}
    for _, _, (_, effects) in run(events):
        for effect in effects:
            if isinstance(effect, life.StopGroup):
                stops[effect.generation] = stops.get(effect.generation, 0) + 1
    assert all(count == 1 for count in stops.values())


@settings(max_examples=200)
@given(HISTORIES)
def test_nobody_waits_for_ever(events: list[life.Event]) -> None:
    """A call that waits is admitted or failed before the model rests, and rests only so long."""
    waiting = False
    for before, event, (after, effects) in run(events):
        if isinstance(event, life.LoadRequested) and event.candidates:
            waiting = before.phase is not Phase.READY or waiting
        if any(isinstance(effect, life.AdmitWaiters | life.FailWaiters) for effect in effects):
            waiting = False
        if waiting:
            assert after.phase not in life.RESTING, f"left waiting in {after.phase} by {event}"
        if after.phase is Phase.READY:
            assert not waiting


@settings(max_examples=200)
@given(HISTORIES)
def test_room_that_is_asked_for_is_taken_or_given_back(events: list[life.Event]) -> None:
    asked = False
    for before, event, (after, effects) in run(events):
        if isinstance(event, life.Granted | life.Refused) and after != before:
            asked = False  # that was the answer, also where the next candidate asks at once
        for effect in effects:
            if isinstance(effect, life.AskRoom):
                assert not asked
                asked = True
            if isinstance(effect, life.LeaveQueue):
                assert asked
                asked = False
        assert asked == (after.phase is Phase.WAITING)


@settings(max_examples=200)
@given(HISTORIES)
def test_a_ready_model_goes_only_when_idle_forced_or_dead(events: list[life.Event]) -> None:
    """Invariant 4: between ready and stopping there is a drain, a force, or the process's end."""
    for before, event, (after, _) in run(events):
        if before.phase is Phase.READY and after.phase is Phase.STOPPING:
            assert isinstance(event, life.Exited) or (
                isinstance(event, life.StopRequested) and event.force
            )
        if before.phase is Phase.DRAINING and after.phase is Phase.STOPPING:
            assert isinstance(event, life.Drained | life.Exited) or (
                isinstance(event, life.StopRequested) and event.force
            )


@settings(max_examples=200)
@given(HISTORIES)
def test_only_what_failed_has_to_wait(events: list[life.Event]) -> None:
    """Invariant 7: a penalty is the current candidate's own; a change lifts all."""
    for before, event, (after, effects) in run(events):
        for effect in effects:
            if isinstance(effect, life.ArmBackoff):
                assert effect.candidate == before.candidate
        if isinstance(event, life.Changed):
            assert not after.penalties and not after.crashes
            assert after.phase not in (Phase.BACKOFF, Phase.FAILED)


@settings(max_examples=300)
@given(HISTORIES)
def test_a_backoff_has_an_end(events: list[life.Event]) -> None:
    armed = False
    for before, event, (after, effects) in run(events):
        armed = armed or any(isinstance(effect, life.ArmBackoff) for effect in effects)
        if after.phase is Phase.BACKOFF and before.phase is not Phase.BACKOFF:
            assert armed
        if isinstance(event, life.Changed):
            armed = False


def drive(*events: life.Event, state: Lifecycle | None = None) -> life.Step:
    state, effects = state or Lifecycle(), ()
    for event in events:
        state, effects = life.next(state, event)
    return state, effects


def test_the_straight_way() -> None:
    state, effects = drive(life.LoadRequested(("a",)))
    assert (state.phase, effects) == (Phase.WAITING, (life.AskRoom(1, "a"),))
    state, effects = life.next(state, life.Granted(1))
    assert (state.phase, effects) == (Phase.STARTING, (life.Start(1, "a"),))
    state, effects = life.next(state, life.Answered(1))
    assert (state.phase, effects) == (Phase.LOADING, (life.SendLoad(1),))
    state, effects = life.next(state, life.Loaded(1))
    assert (state.phase, effects) == (Phase.READY, (life.AdmitWaiters(1),))
    state, effects = life.next(state, life.StopRequested(ASKED))
    assert (state.phase, effects) == (Phase.DRAINING, (life.Drain(1),))
    state, effects = life.next(state, life.Drained(1))
    assert (state.phase, effects) == (Phase.STOPPING, (life.StopGroup(1, True),))
    state, effects = life.next(state, life.GroupGone(1))
    assert (state.phase, effects) == (Phase.STOPPED, ())


STARTING = (life.LoadRequested(("a",)), life.Granted(1))
READY = drive(*STARTING, life.Answered(1), life.Loaded(1))[0]
FAILURE = Failure("a", ERROR)


def test_the_next_candidate_is_tried_at_once_and_both_have_to_wait_then() -> None:
    state, effects = drive(
        life.LoadRequested(("a", "b")), life.Granted(1), life.AttemptFailed(1, FAILURE)
    )
    assert life.ArmBackoff("a", 1) in effects
    state, effects = life.next(state, life.GroupGone(1))
    assert effects == (life.AskRoom(2, "b"),)
    other = Failure("b", ERROR)
    state, effects = drive(life.Granted(2), life.AttemptFailed(2, other), state=state)
    assert life.ArmBackoff("b", 1) in effects
    state, effects = life.next(state, life.GroupGone(2))
    assert state.phase is Phase.BACKOFF
    assert effects == (life.FailWaiters((FAILURE, other)),)


def test_a_candidate_that_works_leaves_the_penalty_of_the_other() -> None:
    state, _ = drive(
        life.LoadRequested(("a", "b")),
        life.Granted(1),
        life.AttemptFailed(1, FAILURE),
        life.GroupGone(1),
        life.Granted(2),
        life.Answered(2),
        life.Loaded(2),
    )
    assert [penalty.candidate for penalty in state.penalties] == ["a"]


def test_lack_of_memory_is_tried_once_more_with_more_room() -> None:
    lack = Failure("a", ERROR, out_of_memory=True)
    state, effects = drive(*STARTING, life.AttemptFailed(1, lack))
    assert effects == (life.StopGroup(1, False),)
    state, effects = life.next(state, life.GroupGone(1))
    assert effects == (life.AskRoom(2, "a", more=True),)
    again, effects = drive(life.Granted(2), life.AttemptFailed(2, lack), state=state)
    assert life.ArmBackoff("a", 1) in effects
    assert life.next(again, life.GroupGone(2))[0].phase is Phase.BACKOFF
    refused, effects = life.next(state, life.Refused(2, Failure("a", ERROR)))
    assert refused.phase is Phase.BACKOFF
    assert effects == (life.ArmBackoff("a", 1), life.FailWaiters((lack,)))


def test_no_room_is_no_fault_of_the_model() -> None:
    state, effects = drive(life.LoadRequested(("a",)), life.Refused(1, FAILURE))
    assert state.phase is Phase.STOPPED and not state.penalties
    assert effects == (life.FailWaiters((FAILURE,)),)


def test_the_first_crash_reloads_at_once_and_the_second_waits() -> None:
    state, effects = drive(life.Exited(1, FAILURE), state=READY)
    assert effects == (life.CutCalls(1, FAILURE), life.StopGroup(1, False))
    state, _ = drive(life.GroupGone(1), life.LoadRequested(("a",)), state=state)
    assert state.phase is Phase.WAITING
    state, _ = drive(
        life.Granted(2), life.Answered(2), life.Loaded(2), life.Exited(2, FAILURE), state=state
    )
    state, effects = life.next(state, life.GroupGone(2))
    assert state.phase is Phase.BACKOFF and effects[0] == life.ArmBackoff("a", 1)


def crash(state: Lifecycle) -> life.Step:
    state, _ = drive(life.BackoffEnded("a"), life.LoadRequested(("a",)), state=state)
    at = state.generation
    return drive(
        life.Granted(at),
        life.Answered(at),
        life.Loaded(at),
        life.Exited(at, FAILURE),
        life.GroupGone(at),
        state=state,
    )


def test_a_crash_loop_ends_in_quarantine() -> None:
    state, effects = Lifecycle(), ()
    for number in range(1, life.CRASH_LIMIT + 1):
        assert not state.quarantined, number
        state, effects = crash(state)
    assert state.quarantined
    assert life.ArmBackoff("a", life.CRASH_LIMIT - 1, quarantine=True) in effects
    assert not life.next(state, life.Changed())[0].quarantined


def test_a_stable_time_forgets_earlier_crashes() -> None:
    state, _ = drive(
        life.Exited(1, FAILURE), life.GroupGone(1), life.LoadRequested(("a",)), state=READY
    )
    state, _ = drive(life.Granted(2), life.Answered(2), life.Loaded(2), life.Stable(2), state=state)
    state, _ = drive(life.Exited(2, FAILURE), life.GroupGone(2), state=state)
    assert state.phase is Phase.STOPPED


def test_a_change_ends_the_backoff() -> None:
    state, _ = drive(*STARTING, life.AttemptFailed(1, FAILURE), life.GroupGone(1))
    assert state.phase is Phase.BACKOFF
    state, effects = life.next(state, life.Changed())
    assert state.phase is Phase.STOPPED and effects == (life.DisarmBackoff(),)


def test_busy_calls_refuse_the_stop_and_the_model_serves_on() -> None:
    state, _ = life.next(READY, life.StopRequested(ASKED))
    state, effects = life.next(state, life.DrainTimedOut(1))
    assert state.phase is Phase.READY
    assert effects == (life.RefuseStop(1), life.AdmitWaiters(1))


def test_a_second_wish_to_unload_does_not_cut_the_calls() -> None:
    state, effects = drive(
        life.StopRequested(ASKED),
        life.LoadRequested(("a",)),
        life.StopRequested(ASKED),
        state=READY,
    )
    assert state.phase is Phase.DRAINING and not state.reload
    assert not any(isinstance(effect, life.CutCalls | life.StopGroup) for effect in effects)
    state, _ = drive(life.Drained(1), life.GroupGone(1), state=state)
    assert state.phase is Phase.STOPPED


def test_force_calls_off_the_load_that_was_to_follow() -> None:
    state, effects = drive(
        life.StopRequested(ASKED),
        life.LoadRequested(("a",)),
        life.StopRequested(ASKED, force=True),
        state=READY,
    )
    assert any(isinstance(effect, life.FailWaiters) for effect in effects)
    state, effects = life.next(state, life.GroupGone(1))
    assert state.phase is Phase.STOPPED and effects == ()


def test_a_load_asked_for_while_stopping_follows_the_stop() -> None:
    state, _ = drive(life.StopRequested(ASKED), life.LoadRequested(("b",)), state=READY)
    state, effects = drive(life.Drained(1), life.GroupGone(1), state=state)
    assert effects == (life.AskRoom(2, "b"),)


def test_a_stop_leaves_the_queue() -> None:
    state, effects = drive(life.LoadRequested(("a",)), life.StopRequested(ASKED))
    assert state.phase is Phase.STOPPED
    assert life.LeaveQueue(1) in effects
