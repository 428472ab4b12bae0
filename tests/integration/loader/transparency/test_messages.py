"""All messages of all RPCs, and all metadata, are the same on every route to a backend."""

from __future__ import annotations

import base64
import json
from operator import methodcaller
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from corral.backend import backend_pb2 as pb
from services.common.rpc.status import from_rpc_error
from tests.tools.messages import messages
from tests.tools.outcomes import (
    METHODS,
    TIMEOUT,
    Metadata,
    Outcome,
    joined,
    kind_of,
    pairs,
    steps,
)
from tests.tools.transparency import World, examples, same
from tests.tools.ways import Way

CONTROL = ("LoadModel", "Free")
ANSWERED = [name for name in METHODS if name not in CONTROL]
HOP = ("authorization", "user-agent")
"""Metadata that each hop sets itself."""


def batches(name: str, size: int = 12) -> st.SearchStrategy[list[bytes]]:
    """Return rows of messages that an RPC takes, and of bytes that are not valid messages."""
    one = messages(METHODS[name].input_type) | st.binary(max_size=64)
    return st.lists(one, min_size=size // 2, max_size=size)


def echoed(way: Way, name: str, sent: list[bytes]) -> list[bytes]:
    """Send messages by an RPC of any kind, and return those that a backend echoed."""
    kind = kind_of(name)
    if kind == "stream_stream":
        return list(way.ask(name, sent, ("echo",)).messages)
    if kind == "unary_stream":
        return list(way.ask(name, [joined(sent)], ("read",), ("split",)).messages)
    told = steps(("echo",))
    calls = [way.start(name, message, metadata=told) for message in sent]
    return [call.result() for call in calls]


@pytest.mark.parametrize("name", METHODS)
def test_any_message_passes(world: World, name: str) -> None:
    @examples(6)
    @given(batches(name, 60 if "stream" in kind_of(name) else 12))
    def passes(sent: list[bytes]) -> None:
        for way in world.ways:
            if name not in way.refuses:
                assert echoed(way, name, sent) == sent, way

    passes()


@pytest.mark.parametrize("name", ANSWERED)
def test_a_real_backend_answers_the_same(world: World, name: str) -> None:
    """It parses its requests, refuses invalid messages, and has state."""
    method = METHODS[name]

    @examples(3)
    @given(batches(name, 4))
    def answers(sent: list[bytes]) -> None:
        calls = [sent] if method.client_streaming else [[bounded(name, one)] for one in sent]
        for requests in calls:
            same(world, methodcaller("ask", name, requests), early=method.server_streaming)

    answers()


def bounded(name: str, message: bytes) -> bytes:
    """Return the request with a small token limit, if it has one."""
    if name != "PredictStream":
        return message
    try:
        parsed = pb.PredictOptions.FromString(message)
    except DecodeError:
        return message
    parsed.Tokens %= 20
    return parsed.SerializeToString()


@pytest.mark.parametrize("name", CONTROL)
def test_the_control_plane_owns_loading(world: World, name: str) -> None:
    """The one difference in what is passed on: a loader's models are shared."""
    for way in world.ways:
        if way.name == "endpoint":
            # The endpoint's clients know nothing of Corral, so both methods succeed for them.
            answer = way.ask(name, [b""]).messages[0]
            assert pb.Result.FromString(answer).success
        elif name in way.refuses:
            call = way.start(name, b"", metadata=steps(("echo",)))
            with pytest.raises(grpc.RpcError) as refused:
                call.result()
            assert from_rpc_error(refused.value).reason == "CONTROL_PLANE_ONLY"
        else:
            assert way.ask(name, [b""], ("echo",)).messages == (b"",)


@pytest.mark.parametrize(
    ("name", "size", "compression"),
    [
        ("Predict", 70_000, grpc.Compression.Gzip),
        ("Predict", 5 * 1024**2, grpc.Compression.NoCompression),
        ("PredictStream", 70_000, grpc.Compression.Deflate),
        ("Forward", 1024**2, grpc.Compression.Gzip),
    ],
)
def test_large_messages_pass(
    world: World, name: str, size: int, compression: grpc.Compression
) -> None:
    message = bytes(size)
    seen = same(world, lambda way: way.ask(name, [message], ("echo",), compression=compression))
    assert seen.messages == (message,)


_KEYS = st.from_regex(r"[a-z][a-z0-9_.-]{0,12}", fullmatch=True).filter(
    lambda key: not key.startswith(("grpc-", "corral-", "fake-")) and not key.endswith("-bin")
)
_PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30).map(
    str.strip
)
METADATA = st.lists(
    st.tuples(_KEYS, _PRINTABLE)
    | st.tuples(_KEYS.map(lambda key: f"{key}-bin"), st.binary(max_size=30)),
    max_size=8,
).flatmap(
    # Keys may repeat.
    lambda some: (
        st.lists(st.sampled_from(some), max_size=4).map(lambda more: some + more)
        if some
        else st.just(some)
    )
)


@pytest.mark.parametrize("name", ["Predict", "PredictStream", "Forward"])
def test_any_metadata_pass(world: World, name: str) -> None:
    @examples(25)
    @given(METADATA, METADATA, METADATA)
    def passes(sent: Metadata, initial: Metadata, trailing: Metadata) -> None:
        told = (("initial", pairs(initial)), ("see",), ("end", "OK", "", pairs(trailing)))
        outcomes = {}
        for way in world.ways:
            seen = way.ask(name, [b""], *told, metadata=sent)
            (message,) = seen.messages
            arrived = json.loads(message)["metadata"]
            own = [tuple(pair) for pair in arrived if pair[0] not in (*HOP, "fake-steps")]
            assert sorted_by_key(own) == sorted_by_key([tuple(p) for p in pairs(sent)]), way
            assert seen.initial == tuple(sorted_by_key(initial)), way
            assert seen.trailing == tuple(sorted_by_key(trailing)), way
            outcomes[way] = seen.code
        assert set(outcomes.values()) == {grpc.StatusCode.OK}

    passes()


def sorted_by_key(metadata: Any) -> list[Any]:
    return sorted(metadata, key=lambda pair: pair[0])


def test_much_metadata_passes(world: World) -> None:
    """8 KiB, which gRPC servers are certain to accept."""
    much = [(f"key-{number}", "v" * 100) for number in range(30)]
    told = (("initial", pairs(much)), ("see",), ("end", "OK", "", pairs(much)))
    for way in world.ways:
        # The steps are metadata too, so less fits on the way to the backend.
        seen = way.ask("Predict", [b""], *told[1:2], metadata=much)
        assert sum(pair[0].startswith("key-") for pair in seen_by(seen)) == 30, way
        seen = way.ask("Predict", [b""], *told)
        assert len(seen.initial) == len(seen.trailing) == 30, way


def seen_by(outcome: Outcome) -> list[list[str]]:
    metadata: list[list[str]] = json.loads(outcome.messages[0])["metadata"]
    return metadata


def test_what_a_way_adds(world: World) -> None:
    """Only trailing metadata, under Corral's own names; the backend sees the original call."""
    secret = base64.b64encode(b"\0\xff").decode()
    for way in world.ways:
        seen = way.ask("Predict", [b""], ("see",), metadata=(("a-bin", b"\0\xff"),))
        left = [pair for pair in seen_by(seen) if pair[0] not in (*HOP, "fake-steps")]
        assert left == [["a-bin", secret]], way
        assert all(key.startswith(("corral-", "x-request-id")) for key, _ in seen.added)
        assert bool(seen.added) == (way.name == "gateway"), way


def test_a_deadline_arrives(world: World) -> None:
    for way in world.ways:
        seen = way.ask("Predict", [b""], ("see",), timeout=TIMEOUT)
        remaining = json.loads(seen.messages[0])["remaining"]
        assert TIMEOUT - 2 < remaining < TIMEOUT + 0.5, way
    for way in world.ways:
        seen = way.ask("Predict", [b""], ("see",), timeout=None)
        assert json.loads(seen.messages[0])["remaining"] is None, way
