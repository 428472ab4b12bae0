"""A sender faster than its reader has to wait, on every route; nothing piles up in between."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from tests.tools.outcomes import Outcome
from tests.tools.talk import Talk, release
from tests.tools.transparency import World, same
from tests.tools.waiting import eventually_sync
from tests.tools.ways import Way

MIB = 1024**2
COUNT = 100
"""Messages of 1 MiB: more than all buffers of gRPC and the system hold together."""

STALLED = 40
"""The most messages in flight while the other side does not read."""

ROOM = 32 * MIB
"""Memory that the loader may use meanwhile, for one call or several: windows and a few copies."""


def memory(world: World) -> int:
    resident: int = psutil.Process(world.loader.service.pid).memory_info().rss
    return resident


def stands_still(way: Way, count: Callable[[], int], most: int) -> None:
    """Wait until a count has started and is stable for half a second, at no more than `most`.

    The SDK's clients have windows that grow with the time that a busy machine takes to answer, so
    their count has no limit.
    """
    seen: list[int] = []

    def unchanged() -> bool:
        seen.append(count())
        return len(seen) > 25 and seen[-1] > 0 and len(set(seen[-25:])) == 1

    eventually_sync(unchanged, what="the standstill", interval=0.02)
    assert seen[-1] < most or way.name == "leased", way


@pytest.mark.parametrize("name", ["PredictStream", "Forward"])
def test_a_client_that_does_not_read(world: World, name: str) -> None:
    def ask(way: Way) -> Outcome:
        before = memory(world)
        talk = Talk(way, ("write", MIB, COUNT), name=name)
        talk.read()
        stands_still(way, lambda: talk.progress()["sent"], STALLED)
        assert memory(world) - before < ROOM, way
        return talk.finish()

    seen = same(world, ask)
    assert [message[:4] for message in seen.messages] == [
        n.to_bytes(4, "big") for n in range(COUNT)
    ]


@pytest.mark.parametrize("name", ["Forward", "CountUploads"])
def test_a_backend_that_does_not_read(world: World, name: str) -> None:
    kind = "stream_unary" if name == "CountUploads" else "stream_stream"

    def ask(way: Way) -> Outcome:
        before = memory(world)
        told = (("wait", f"{name}-{way}"), ("read",), ("write", 1, 1))
        talk = Talk(way, *told, name=name, kind=kind)
        message = bytes(MIB)
        for _ in range(COUNT):
            talk.send(message)
        talk.half_close()
        stands_still(way, lambda: talk.taken, STALLED)
        assert memory(world) - before < ROOM, way
        release(way, f"{name}-{way}")
        seen = talk.finish()
        assert talk.progress()["received"] == COUNT
        return seen

    assert same(world, ask).messages == (b"\0",)


def test_both_sides_slow(world: World) -> None:
    """An echo with unread answers stops the requests too."""

    def ask(way: Way) -> Outcome:
        talk = Talk(way, ("echo",))
        for _ in range(COUNT):
            talk.send(bytes(MIB))
        talk.half_close()
        stands_still(way, lambda: talk.taken, 2 * STALLED)
        return talk.finish()

    assert sum(map(len, same(world, ask).messages)) == COUNT * MIB


def test_many_clients_that_do_not_read(world: World) -> None:
    """Other clients are not affected, and the slow ones get all their messages in the end."""
    for way in world.ways:
        if way.name == "leased":
            continue  # its windows may hold all of it, and then there is nothing to cancel
        before = memory(world)
        told = (("read",), ("write", MIB // 4, COUNT))
        talks = [Talk(way, *told, name="PredictStream") for _ in range(16)]

        def sent(talks: list[Talk] = talks) -> int:
            return sum(talk.progress()["sent"] for talk in talks)

        stands_still(way, sent, 16 * STALLED)
        assert memory(world) - before < 2 * ROOM, way
        assert way.ask("Predict", [b"x"], ("echo",)).messages == (b"x",)
        for talk in talks[1:]:
            talk.call.cancel()
        for talk in talks[1:]:
            talk.ended("cancelled")
        assert len(talks[0].finish().messages) == COUNT
