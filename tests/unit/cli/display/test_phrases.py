import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.loader.v1 import loader_pb2
from services.cli.display import messages, phrases, views
from services.cli.status import capacity

STATE = loader_pb2.Model.State
Memory = loader_pb2.MemoryReservation


def view(state: STATE.ValueType, **more: object) -> views.Model:
    return messages.model(loader_pb2.Model(name="models/m", state=state, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("held", "shown"),
    [
        ([], ""),
        ([Memory(device="ram", bytes=2**30, basis=Memory.BASIS_MEASURED)], "1.0 GiB"),
        ([Memory(device="ram", bytes=2**30, basis=Memory.BASIS_LEARNED)], "1.0 GiB (learned)"),
        (
            [
                Memory(device="ram", bytes=2**20, basis=Memory.BASIS_MEASURED),
                Memory(device="gpu0", bytes=2**30, basis=Memory.BASIS_ESTIMATED),
                Memory(device="gpu1", basis=Memory.BASIS_ESTIMATED),
            ],
            "1.0 MiB, 1.0 GiB on gpu0 (measured, estimated)",
        ),
    ],
)
def test_memory_says_where_it_is_from(held: list[Memory], shown: str) -> None:
    assert phrases.memory(messages.reservations(held)) == shown


def test_what_a_later_loader_says_is_shown_too() -> None:
    assert messages.state_of(loader_pb2.Model(state=99)) == "99"  # type: ignore[arg-type]


def test_a_model_that_waits_without_a_place() -> None:
    assert phrases.note(view(STATE.STATE_WAITING)) == "waits to be loaded"
    assert phrases.note(view(STATE.STATE_WAITING, state_message="for a slot")) == "for a slot"


def test_calls() -> None:
    assert phrases.calls(view(STATE.STATE_UNLOADED)) == ""
    ready = view(STATE.STATE_READY, instances=[loader_pb2.Instance(active_calls=2)])
    assert phrases.calls(ready) == "2"
    assert phrases.calls(view(STATE.STATE_LOADING, queued_calls=7)) == "0 +7"


@given(total=st.integers(0, 2**45), available=st.integers(0, 2**46), reserved=st.integers(0, 2**46))
def test_a_bar_is_always_as_long(total: int, available: int, reserved: int) -> None:
    bar = capacity.bar(
        {"total_bytes": total, "available_bytes": available, "reserved_bytes": reserved}
    )
    assert len(bar) == 20
    assert bar == "".join(sorted(bar, key="█▒░".index))
    if reserved and total:
        assert bar.startswith("█")
