"""Every kind of failure looks the same on every route to a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from operator import methodcaller
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.rpc.status import DETAILS_KEY
from tests.tools.outcomes import Metadata, Outcome, Step, kind_of, pairs
from tests.tools.talk import Talk
from tests.tools.transparency import World, examples, running_world, same
from tests.tools.waiting import eventually_sync
from tests.tools.ways import Way

Code = grpc.StatusCode
FAILURES = [code for code in Code if code is not Code.OK]
TEXTS = ["", "plain", "100 % %41 %zz", "grüß Gott – 日本語 🤠", " two\nlines\t", "long " * 700]
TRAILING: Metadata = (
    ("key", "value"),
    ("key", "another"),
    ("some-bin", b"\0\xff"),
    (DETAILS_KEY, b"\x08\x03\x12\x04text"),
)
ONE_OF_EACH = ["Predict", "PredictStream", "Forward", "CountUploads"]
STREAMS = ("PredictStream", "Forward")
KINDS = {"CountUploads": "stream_unary"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world whose gateway has a lower message size limit than the backend."""
    with running_world(tmp_path_factory.mktemp("world"), "--max-message-size", "1MiB") as running:
        yield running


def ask(way: Way, name: str, *told: Step) -> Outcome:
    return way.ask(name, [b"request"], *told, kind=KINDS.get(name) or kind_of(name))


def asked(name: str, *told: Step) -> Callable[[Way], Outcome]:
    return lambda way: ask(way, name, *told)


def answers(way: Way) -> bool:
    return way.ask("Predict", [b"x"], ("echo",)).messages == (b"x",)


def by_client(seen: Outcome) -> Outcome:
    """Return an outcome without its status text, which the client's gRPC words in varying ways."""
    return replace(seen, details="")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_status(world: World, name: str) -> None:
    for number, code in enumerate(FAILURES):
        text = TEXTS[number % len(TEXTS)]
        told = (("read",), ("end", code.name, text, pairs(TRAILING)))
        seen = same(world, asked(name, *told))
        assert (seen.code, seen.details) == (code, text)
        assert dict(seen.trailing)[DETAILS_KEY] == TRAILING[3][1]
        if kind_of(name) != "stream_stream":  # see Outcome: there its client may be the first
            assert world.ways[0].ask_aio(name, [b""], *told) == seen


@pytest.mark.parametrize("name", STREAMS)
def test_an_error_after_messages(world: World, name: str) -> None:
    for code in FAILURES:
        told = (
            ("initial", pairs(TRAILING[:3])),
            ("read",),
            ("write", 10, 4),
            ("end", code.name, "so far", pairs(TRAILING)),
        )
        seen = same(world, asked(name, *told))
        assert (seen.code, seen.details, len(seen.messages)) == (code, "so far", 4)
        assert seen.initial == TRAILING[:3]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_any_failure(world: World, name: str) -> None:
    @examples(40)
    @given(
        st.sampled_from(FAILURES),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.binary(max_size=40),
        st.integers(0, 3 if name in STREAMS else 0),
        st.booleans(),
    )
    def fails(code: Code, text: str, details: bytes, count: int, initial: bool) -> None:
        trailing = pairs(((DETAILS_KEY, details),))
        told: list[Step] = [("read",), ("write", 3, count), ("end", code.name, text, trailing)]
        if initial:
            told.insert(0, ("initial", pairs(TRAILING[:2])))
        seen = same(world, lambda way: ask(way, name, *told), early=name in STREAMS)
        assert (seen.code, seen.details) == (code, text)

    fails()


@pytest.mark.parametrize("name", ["Predict", "PredictStream", "Forward"])
def test_a_real_backend_refuses(world: World, name: str) -> None:
    for setting in ("status=DATA_LOSS", "status=UNAVAILABLE", f"unimplemented={name}", "no=1"):
        told = (("fake-set", setting), ("fake-echo-x", "y"))
        same(world, methodcaller("ask", name, [b""], metadata=told), early=name in STREAMS)


def test_rpcs_that_the_backend_does_not_have(world: World) -> None:
    for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        for message in (b"", b"x" * 100_000):
            seen = same(world, methodcaller("ask", "Nobody", [message], kind=kind))
            assert seen.code is Code.UNIMPLEMENTED


def test_no_answer(world: World) -> None:
    """A backend that breaks the protocol; the gateway must not invent its answer."""
    for way in world.ways:
        seen = way.ask("Predict", [b""], ("read",))
        nothing: tuple[Any, ...] = (None,)
        assert seen.code is not Code.OK or seen.messages == nothing, (way, seen)


@pytest.mark.parametrize("name", ["Predict", "PredictStream", "Forward"])
def test_a_message_that_the_client_does_not_take(world: World, name: str) -> None:
    def ask(way: Way) -> Outcome:
        with way.open(("grpc.max_receive_message_length", 1000)) as channel:
            return way.ask(name, [b""], ("read",), ("write", 2000, 1), channel=channel)

    seen = same(world, ask)
    assert seen.code is Code.RESOURCE_EXHAUSTED and "2000 vs. 1000" in seen.details


@pytest.mark.parametrize("name", ["Predict", "PredictStream", "Forward"])
def test_a_message_that_the_gateway_does_not_take(world: World, name: str) -> None:
    """The gateway has its own limit, which its error names."""
    size = 1024**2
    for way in world.ways:
        limited = way.name == "gateway"
        for extra in (0, 1):
            expected = Code.RESOURCE_EXHAUSTED if limited and extra else Code.OK
            up = way.ask(name, [bytes(size + extra)], ("read",), ("write", 1, 1))
            down = way.ask(name, [b""], ("read",), ("write", size + extra, 1))
            assert (up.code, down.code) == (expected, expected), way
            for seen in (up, down):
                assert not limited or not extra or f"{size}" in seen.details.replace(",", "")


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("count", [0, 2])
def test_a_deadline_that_passes(world: World, name: str, count: int) -> None:
    if count and name not in STREAMS:
        pytest.skip("answers once")

    def ask(way: Way) -> Outcome:
        kind = KINDS.get(name) or kind_of(name)
        told = (("write", 3, count), ("hang",))
        talk = Talk(way, *told, name=name, kind=kind, timeout=0.3)
        seen = talk.finish()
        talk.ended("cancelled")
        assert 0 < talk.progress()["seen"]["remaining"] < 0.5
        return by_client(seen)

    seen = same(world, ask)
    assert seen.code is Code.DEADLINE_EXCEEDED and len(seen.messages) == count


def test_a_deadline_that_has_passed(world: World) -> None:
    def asked_too_late(name: str) -> Callable[[Way], Outcome]:
        return lambda way: by_client(way.ask(name, [b""], timeout=-1))

    for name in ("Predict", "PredictStream", "Forward"):
        assert same(world, asked_too_late(name)).code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_client_that_cancels(world: World, name: str) -> None:
    def ask(way: Way) -> Outcome:
        kind = KINDS.get(name) or kind_of(name)
        talk = Talk(way, ("write", 3, 1), ("hang",), name=name, kind=kind)
        talk.arrived()
        if kind.endswith("stream"):
            talk.read()
        talk.call.cancel()
        talk.ended("cancelled")
        return talk.finish()

    assert same(world, ask).code is Code.CANCELLED


def test_a_client_that_cancels_at_once(world: World) -> None:
    for name in ("Predict", "PredictStream", "Forward"):

        def ask(way: Way, name: str = name) -> Outcome:
            talk = Talk(way, ("hang",), name=name, kind=kind_of(name))
            talk.call.cancel()
            return talk.finish()

        assert same(world, ask).code is Code.CANCELLED


def test_a_client_that_vanishes(world: World) -> None:
    for way in world.ways:
        channel = way.open()
        talk = Talk(way, ("write", 3, 1), ("hang",), channel=channel)
        talk.read()
        channel.close()
        talk.ended("cancelled")


def test_a_backend_that_dies(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Calls in flight get UNAVAILABLE; the loader knows why and starts a backend for the next."""
    with running_world(tmp_path_factory.mktemp("world")) as world:
        for way in world.ways:
            names = ["Predict", "PredictStream", "Forward"]
            talks = [Talk(way, ("hang",), name=name, kind=kind_of(name)) for name in names]
            fatal = Talk(way, ("write", 3, 2), ("read", 1), ("crash",))
            assert [fatal.read()[3:], fatal.read()[3:]] == [b"", b""]
            for talk in talks:
                talk.arrived()
            fatal.send(b"now")
            outcomes = [talk.finish() for talk in (*talks, fatal)]
            assert {seen.code for seen in outcomes} == {Code.UNAVAILABLE}, way
            assert len(outcomes[-1].messages) == 2
            if way.name in ("gateway", "endpoint"):
                assert all("SIGKILL" in seen.details for seen in outcomes), outcomes
            if way.name != "direct":
                eventually_sync(partial(answers, way), what="the next one")
