"""Property tests of the lifecycle: whatever happens, in whatever order, the invariants hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.loader import lifecycle as life
from services.loader.lifecycle import Failure, Lifecycle, Phase

ERROR = RuntimeError("failed")
GENERATIONS = st.integers(0, 6)
FAILURES = st.builds(Failure, st.sampled_from(["a", "b"]), st.just(ERROR), st.booleans())
EVENTS = st.one_of(
    st.builds(life.LoadRequested, st.lists(st.sampled_from(["a", "b"]), max_size=2).map(tuple)),
    st.builds(life.Answered, GENERATIONS),
    st.builds(life.Loaded, GENERATIONS),
    st.builds(life.AttemptFailed, GENERATIONS, FAILURES),
    st.builds(life.Exited, GENERATIONS, FAILURES),
    st.builds(life.StopRequested, st.just("why"), st.booleans()),
    st.builds(life.Drained, GENERATIONS),
    st.builds(life.DrainTimedOut, GENERATIONS),
    st.builds(life.GroupGone, GENERATIONS),
    st.builds(life.Stable, GENERATIONS),
    st.builds(life.BackoffEnded, GENERATIONS),
    st.just(life.Changed()),
)


def run(events: list[life.Event]) -> list[tuple[Lifecycle, life.Event, life.Step]]:
    state, steps = Lifecycle(), []
    for event in events:
        step = life.next(state, event)
        steps.append((state, event, step))
        state = step[0]
    return steps


@settings(max_examples=500)
@given(st.lists(EVENTS, max_size=40))
def test_an_event_of_an_earlier_generation_changes_nothing(events: list[life.Event]) -> None:
    for before, event, (after, effects) in run(events):
        if getattr(event, "generation", before.generation) != before.generation:
            assert after == before and effects == ()


@settings(max_examples=500)
@given(st.lists(EVENTS, max_size=40))
def test_a_process_is_started_only_when_none_is_there(events: list[life.Event]) -> None:
    running: set[int] = set()
    for before, event, (after, effects) in run(events):
        if isinstance(event, life.GroupGone) and before.phase is Phase.STOPPING:
            running.discard(event.generation)
        for effect in effects:
            if isinstance(effect, life.Start):
                assert not running, "two generations at once"
                assert effect.generation == before.generation + 1 == after.generation
                running.add(effect.generation)
        assert (after.phase in life.RESTING) == (not running)


@settings(max_examples=500)
@given(st.lists(EVENTS, max_size=40))
def test_each_start_is_followed_by_exactly_one_stop(events: list[life.Event]) -> None:
    stops: dict[int, int] = {}
    for _, _, (_, effects) in run(events):
        for effect in effects:
            if isinstance(effect, life.StopGroup):
                stops[effect.generation] = stops.get(effect.generation, 0) + 1
    assert all(count == 1 for count in stops.values())


@settings(max_examples=500)
@given(st.lists(EVENTS, max_size=40))
def test_nobody_waits_for_ever(events: list[life.Event]) -> None:
    """A call that waits is admitted or failed before the model rests, and rests only so long."""
    waiting = False
    for before, event, (after, effects) in run(events):
        if isinstance(event, life.LoadRequested) and event.candidates:
            waiting = before.phase not in (Phase.READY, Phase.BACKOFF) or waiting
        if any(isinstance(effect, life.AdmitWaiters | life.FailWaiters) for effect in effects):
            waiting = False
        if waiting:
            assert after.phase not in life.RESTING, f"left waiting in {after.phase} by {event}"
        if after.phase is Phase.READY:
            assert not waiting


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=40))
def test_backoff_is_armed_whenever_it_is_entered(events: list[life.Event]) -> None:
    for before, _, (after, effects) in run(events):
        entered = after.phase is Phase.BACKOFF and before.phase is not Phase.BACKOFF
        assert entered == any(isinstance(effect, life.ArmBackoff) for effect in effects)
        if entered:
            assert after.failed_rounds >= 1


def drive(*events: life.Event, state: Lifecycle | None = None) -> life.Step:
    state, effects = state or Lifecycle(), ()
    for event in events:
        state, effects = life.next(state, event)
    return state, effects


def test_the_straight_way() -> None:
    state, effects = drive(life.LoadRequested(("a",)))
    assert (state.phase, effects) == (Phase.STARTING, (life.Start(1, "a"),))
    state, effects = life.next(state, life.Answered(1))
    assert (state.phase, effects) == (Phase.LOADING, (life.SendLoad(1),))
    state, effects = life.next(state, life.Loaded(1))
    assert (state.phase, effects) == (Phase.READY, (life.AdmitWaiters(1),))
    state, effects = life.next(state, life.StopRequested("asked"))
    assert (state.phase, effects) == (Phase.DRAINING, (life.Drain(1),))
    state, effects = life.next(state, life.Drained(1))
    assert (state.phase, effects) == (Phase.STOPPING, (life.StopGroup(1, True),))
    state, effects = life.next(state, life.GroupGone(1))
    assert (state.phase, effects) == (Phase.STOPPED, ())


READY = drive(life.LoadRequested(("a",)), life.Answered(1), life.Loaded(1))[0]
FAILURE = Failure("a", ERROR)


def test_the_next_candidate_is_tried_at_once_and_the_last_failure_backs_off() -> None:
    state, _ = drive(life.LoadRequested(("a", "b")), life.AttemptFailed(1, FAILURE))
    state, effects = life.next(state, life.GroupGone(1))
    assert effects == (life.Start(2, "b"),)
    other = Failure("b", ERROR)
    state, effects = drive(life.AttemptFailed(2, other), life.GroupGone(2), state=state)
    assert state.phase is Phase.BACKOFF
    assert effects == (life.ArmBackoff(2, 1), life.FailWaiters((FAILURE, other)))


def test_the_first_crash_reloads_at_once_and_the_second_waits() -> None:
    state, effects = drive(life.Exited(1, FAILURE), state=READY)
    assert effects == (life.CutCalls(1, FAILURE), life.StopGroup(1, False))
    state, _ = drive(life.GroupGone(1), life.LoadRequested(("a",)), state=state)
    assert state.phase is Phase.STARTING
    state, _ = drive(life.Answered(2), life.Loaded(2), life.Exited(2, FAILURE), state=state)
    state, effects = life.next(state, life.GroupGone(2))
    assert state.phase is Phase.BACKOFF and effects[0] == life.ArmBackoff(2, 1)


def test_a_stable_time_forgets_earlier_crashes() -> None:
    state, _ = drive(
        life.Exited(1, FAILURE), life.GroupGone(1), life.LoadRequested(("a",)), state=READY
    )
    state, _ = drive(life.Answered(2), life.Loaded(2), life.Stable(2), state=state)
    state, _ = drive(life.Exited(2, FAILURE), life.GroupGone(2), state=state)
    assert state.phase is Phase.STOPPED


def test_a_change_ends_the_backoff() -> None:
    state, _ = drive(life.LoadRequested(("a",)), life.AttemptFailed(1, FAILURE), life.GroupGone(1))
    state, _ = life.next(state, life.Changed())
    assert state.phase is Phase.STOPPED and state.failed_rounds == 0


def test_busy_calls_refuse_the_stop_and_the_model_serves_on() -> None:
    state, _ = life.next(READY, life.StopRequested("asked"))
    state, effects = life.next(state, life.DrainTimedOut(1))
    assert state.phase is Phase.READY
    assert effects == (life.RefuseStop(1), life.AdmitWaiters(1))


def test_a_second_wish_to_unload_does_not_cut_the_calls() -> None:
    state, effects = drive(
        life.StopRequested("one"),
        life.LoadRequested(("a",)),
        life.StopRequested("another"),
        state=READY,
    )
    assert state.phase is Phase.DRAINING and not state.reload
    assert not any(isinstance(effect, life.CutCalls | life.StopGroup) for effect in effects)
    state, _ = drive(life.Drained(1), life.GroupGone(1), state=state)
    assert state.phase is Phase.STOPPED


def test_force_calls_off_the_load_that_was_to_follow() -> None:
    state, effects = drive(
        life.StopRequested("asked"),
        life.LoadRequested(("a",)),
        life.StopRequested("now", force=True),
        state=READY,
    )
    assert any(isinstance(effect, life.FailWaiters) for effect in effects)
    state, effects = life.next(state, life.GroupGone(1))
    assert state.phase is Phase.STOPPED and effects == ()


def test_a_load_asked_for_while_stopping_follows_the_stop() -> None:
    state, _ = drive(life.StopRequested("asked"), life.LoadRequested(("b",)), state=READY)
    state, effects = drive(life.Drained(1), life.GroupGone(1), state=state)
    assert effects == (life.Start(2, "b"),)
