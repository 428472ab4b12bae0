import pytest

from corral.loader.v1 import loader_pb2
from services.cli.display import messages, phrases, views

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
def test_memory_with_the_basis_of_its_figures(held: list[Memory], shown: str) -> None:
    assert phrases.memory(messages.reservations(held)) == shown


def test_a_model_that_waits_without_a_place() -> None:
    assert phrases.note(view(STATE.STATE_WAITING)) == "waits to be loaded"
    assert phrases.note(view(STATE.STATE_WAITING, state_message="for a slot")) == "for a slot"


def test_calls() -> None:
    assert phrases.calls(view(STATE.STATE_UNLOADED)) == ""
    ready = view(STATE.STATE_READY, instances=[loader_pb2.Instance(active_calls=2)])
    assert phrases.calls(ready) == "2"
    assert phrases.calls(view(STATE.STATE_LOADING, queued_calls=7)) == "0 +7"
