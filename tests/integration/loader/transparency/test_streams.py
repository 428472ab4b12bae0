"""Messages in both directions and their timing: the same on every route to a backend."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest

from tests.tools.outcomes import METHODS, Outcome, kind_of, method_of, pairs, steps
from tests.tools.talk import Talk, release
from tests.tools.transparency import World, same
from tests.tools.waiting import eventually_sync
from tests.tools.ways import Way

Code = grpc.StatusCode
BOTH = [name for name in METHODS if kind_of(name) == "stream_stream"]
INITIAL = (("first", "1"), ("first-bin", b"\1"))


@pytest.mark.parametrize("name", BOTH)
def test_ping_pong(world: World, name: str) -> None:
    """Each message is answered before the next is sent: nothing is held back."""

    def ask(way: Way) -> Outcome:
        talk = Talk(way, ("echo",), ("end", "OK", "", pairs(INITIAL)), name=name)
        for number in range(250):
            talk.send(number.to_bytes(2, "big"))
            assert talk.read() == number.to_bytes(2, "big")
        talk.half_close()
        return talk.finish()

    seen = same(world, ask)
    assert (seen.code, len(seen.messages), seen.trailing) == (Code.OK, 250, INITIAL)


@pytest.mark.parametrize("name", BOTH)
def test_the_client_closes_its_side_first(world: World, name: str) -> None:
    """The backend sees the half-close after the last message, and keeps sending."""

    def ask(way: Way) -> Outcome:
        talk = Talk(way, ("read",), ("write", 5, 100), name=name)
        for _ in range(100):
            talk.send(b"x" * 1000)
        eventually_sync(lambda: talk.progress()["received"] == 100, what="all messages")
        assert not talk.progress()["half_closed"]
        talk.half_close()
        seen = talk.finish()
        assert talk.progress()["half_closed"]
        talk.ended("done")
        return seen

    assert len(same(world, ask).messages) == 100


@pytest.mark.parametrize("code", ["OK", "ABORTED"])
@pytest.mark.parametrize("name", BOTH)
def test_the_backend_ends_first(world: World, name: str, code: str) -> None:
    """It answers without reading all requests, while the client is still sending."""

    def ask(way: Way) -> Outcome:
        end = ("end", code, "enough" if code != "OK" else "", pairs(INITIAL))
        talk = Talk(way, ("read", 1), ("write", 5, 3), end, name=name)
        for _ in range(50):
            talk.send(b"x" * 1000)
        return talk.finish()

    for _ in range(5):
        seen = same(world, ask)
        assert (seen.code.name, len(seen.messages), seen.trailing) == (code, 3, INITIAL)


def test_the_backend_ends_first_without_a_word_of_the_client(world: World) -> None:
    def ask(way: Way) -> Outcome:
        return Talk(way, ("initial", pairs(INITIAL)), ("write", 5, 1)).finish()

    seen = same(world, ask)
    assert (seen.code, len(seen.messages), seen.initial) == (Code.OK, 1, INITIAL)


@pytest.mark.parametrize("name", BOTH)
def test_a_cancellation_is_no_half_close(world: World, name: str) -> None:
    """Ending a recording is not the same as discarding it."""
    for way in world.ways:
        talk = Talk(way, ("echo", 1), ("read",), ("write", 5, 1), ("hang",), name=name)
        talk.send(b"one")
        talk.read()
        talk.call.cancel()
        talk.ended("cancelled")
        # An answer to a half-close would be the second one. A gRPC server may see one before the
        # cancellation; the gateway waits, so as not to add to that.
        assert talk.progress()["sent"] <= 1 or way.name != "gateway"
        assert talk.finish().code is Code.CANCELLED


def test_the_client_cancels_while_messages_are_on_their_way(world: World) -> None:
    for way in world.ways:
        talk = Talk(way, ("echo",), ("hang",))
        for _ in range(100):
            talk.send(b"x" * 100_000)
        for _ in range(3):
            talk.read()
        talk.call.cancel()
        talk.ended("cancelled")
        assert talk.finish().code is Code.CANCELLED


@pytest.mark.parametrize("name", ["PredictStream", "Forward"])
def test_initial_metadata_come_before_the_answer(world: World, name: str) -> None:
    """On streams; grpcio's clients get metadata and a single answer together."""
    kind = kind_of(name)

    async def ask(way: Way, id: str) -> Any:
        told = steps(("initial", pairs(INITIAL)), ("wait", id), ("read",), ("write", 1, 1))
        given = [b""] if kind.startswith("stream") else b""
        call = method_of(way.aio, name)(given, metadata=(*way.metadata, *told), timeout=20)
        async with asyncio.timeout(5):
            initial = await call.initial_metadata()
        go = steps(("release", id), ("write", 1, 1))
        await method_of(way.aio, "Predict")(b"", metadata=(*way.metadata, *go))
        answers = [one async for one in call] if kind.endswith("stream") else [await call]
        return [pair for pair in initial if pair[0].startswith("first")], answers

    for way in world.ways:
        initial, answers = way.run(ask(way, f"initial-{name}"))
        assert (initial, answers) == (list(INITIAL), [b"\0"]), way


def test_the_first_message_comes_before_the_second(world: World) -> None:
    def ask(way: Way) -> Outcome:
        talk = Talk(
            way,
            ("write", 1, 1),
            ("wait", f"second-{way}"),
            ("write", 1, 1),
            name="PredictStream",
            kind="unary_stream",
        )
        talk.read()
        release(way, f"second-{way}")
        return talk.finish()

    assert len(same(world, ask).messages) == 2


def test_streams_of_random_sizes_side_by_side(world: World) -> None:
    """Messages of all sizes around those of frames and windows, in 8 calls at once."""
    chance = random.Random(7)
    edges = [0, 1, 5, 16_379, 16_384, 16_385, 65_530, 65_535, 65_536, 200_000]
    rows = [
        [chance.randbytes(max(0, chance.choice(edges) + chance.randint(-2, 2))) for _ in range(20)]
        for _ in range(8)
    ]
    for way in world.ways:
        talks = [Talk(way, ("echo",), name=chance.choice(BOTH)) for _ in rows]
        for talk, row in zip(talks, rows, strict=True):
            for message in row:
                talk.send(message)
            talk.half_close()
        for talk, row in zip(talks, rows, strict=True):
            assert talk.finish().messages == tuple(row), way


def test_the_aio_client(world: World) -> None:
    """Reads, writes, half-close and end happen in the order in which the test awaits them."""

    async def ask(way: Way) -> Any:
        told = steps(("echo",), ("write", 2, 1), ("end", "OK", "", pairs(INITIAL)))
        call = method_of(way.aio, "Forward")(metadata=(*way.metadata, *told), timeout=20)
        seen = []
        for number in range(100):
            await call.write(bytes([number]))
            seen.append(await call.read())
        await call.done_writing()
        seen += [await call.read(), await call.read()]
        return seen, await call.code(), [p for p in await call.trailing_metadata() if p in INITIAL]

    seen = [way.run(ask(way)) for way in world.ways]
    assert seen[0] == (
        [*(bytes([number]) for number in range(100)), b"\0\0", grpc.aio.EOF],
        Code.OK,
        list(INITIAL),
    )
    assert all(one == seen[0] for one in seen)
