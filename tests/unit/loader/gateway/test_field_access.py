"""One string of a message that is not known."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.backend import backend_pb2
from services.loader.gateway.field_access import string_field, with_empty_string

NUMBER = backend_pb2.PredictOptions.DESCRIPTOR.fields_by_name["ModelIdentity"].number
NAMED = backend_pb2.PredictOptions(ModelIdentity="m").SerializeToString()
MIB = 1024**2


@settings(deadline=None)
@given(st.text(), st.text(), st.lists(st.text()), st.integers(0, 2**31 - 1), st.floats(width=32))
def test_it_is_what_protobuf_reads(
    name: str, prompt: str, stops: list[str], tokens: int, heat: float
) -> None:
    request = backend_pb2.PredictOptions(
        ModelIdentity=name, Prompt=prompt, StopPrompts=stops, Tokens=tokens, Temperature=heat
    )
    message = request.SerializeToString()
    assert string_field(message, NUMBER) == name
    assert string_field(message + NAMED, NUMBER) == "m"
    cleared = with_empty_string(message, NUMBER)
    assert string_field(cleared, NUMBER) == ""
    request.ModelIdentity = ""
    assert backend_pb2.PredictOptions.FromString(cleared) == request


@settings(deadline=None)
@given(st.binary())
def test_anything_is_read_or_left(junk: bytes) -> None:
    assert isinstance(string_field(junk, NUMBER), str)
    assert string_field(NAMED + b"\xff", NUMBER) == ""


@pytest.mark.parametrize(
    "message",
    [
        bytes(4 * MIB),
        b"\n\1x" + bytes(4 * MIB),
        NAMED * (MIB // 4),
        b"\x10\1" * (MIB // 2) + NAMED,
        backend_pb2.PredictOptions(Prompt="x" * 4 * MIB, ModelIdentity="m").SerializeToString(),
        b"\x0b" * MIB + NAMED,
    ],
    ids=["zeros", "a field, then zeros", "names", "small fields", "text", "groups"],
)
def test_nothing_takes_long(message: bytes) -> None:
    """All other calls wait meanwhile."""
    string_field(NAMED, NUMBER)
    began = time.process_time()
    string_field(message, NUMBER)
    assert time.process_time() - began < 0.1
