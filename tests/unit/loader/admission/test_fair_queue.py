"""Property tests of the clients' turns: no call starves or is lost, every position is correct."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.loader.admission.fair_queue import FairQueue

SIZE = 12
CLIENTS = st.sampled_from("abcde")


@dataclass(eq=False)
class Call:
    client: str
    number: int
    bound: int = 0
    """The number of turns within which it must be served."""


class Waiting(RuleBasedStateMachine):
    """Calls that arrive, leave, are evicted and are served, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[Call] = FairQueue()
        self.there: list[Call] = []
        self.gone: list[Call] = []
        self.number = 0
        self.turns: dict[Call, int] = {}
        """The number of other calls served while it waited."""
        self.clients: dict[Call, set[str]] = {}
        """The clients that had calls in the queue while it waited."""
        self.before: dict[Call, int] = {}
        """The number of its client's calls already in the queue when it arrived."""

    @rule(client=CLIENTS)
    def come(self, client: str) -> None:
        if len(self.queue) >= SIZE:
            greedy = self.queue.crowding(client)
            counts = self.counts()
            if greedy is None:
                assert max(counts.values()) <= counts[client] + 1, "the client has its share"
                return
            assert counts[greedy.client] == max(counts.values())
            assert counts[greedy.client] - 1 >= counts[client] + 1, "not just a swap of shares"
            own = [call for call in self.there if call.client == greedy.client]
            assert greedy is own[-1], "the client's newest call is evicted"
            self.go(greedy)
        self.number += 1
        call = Call(client, self.number)
        place = self.queue.next_position(client)
        self.before[call] = self.counts()[client]
        self.queue.push(call)
        self.there.append(call)
        assert self.queue.position(call) == place
        self.turns[call] = 0
        self.clients[call] = set()
        for each in self.there:
            self.clients[each].update(other.client for other in self.there)

    @rule(which=st.integers(0, SIZE))
    @precondition(lambda self: self.there)
    def leave(self, which: int) -> None:
        self.go(self.there[which % len(self.there)])

    def go(self, call: Call) -> None:
        places = self.places()
        self.queue.remove(call)
        self.there.remove(call)
        self.gone.append(call)
        after = self.places()
        assert all(after[each] <= places[each] for each in after), "no call moves back in the queue"

    @rule()
    @precondition(lambda self: self.there)
    def serve(self) -> None:
        places = self.places()
        call = self.queue.pop()
        assert places[call] == 1
        assert call is next(each for each in self.there if each.client == call.client)
        self.there.remove(call)
        self.gone.append(call)
        assert self.places() == {each: places[each] - 1 for each in self.there}
        for each in self.there:
            self.turns[each] += 1
            rounds = self.before[each] + 1
            assert self.turns[each] < rounds * len(self.clients[each]), "a call starves"

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = defaultdict(int)
        for call in self.there:
            counts[call.client] += 1
        return counts

    def places(self) -> dict[Call, int]:
        return {call: self.queue.position(call) for call in self.there}

    @invariant()
    def everybody_is_there_once(self) -> None:
        assert len(self.queue) == len(self.there) <= SIZE
        assert set(self.queue) == set(self.there) and len(list(self.queue)) == len(self.there)
        assert all(call in self.queue for call in self.there)
        assert not any(call in self.queue for call in self.gone)
        counts = self.counts()
        assert all(self.queue.count(client) == counts[client] for client in "abcde")

    @invariant()
    def places_are_those_of_the_turns(self) -> None:
        assert [self.queue.position(call) for call in self.queue] == [
            *range(1, len(self.there) + 1)
        ]
        for client in "abcde":
            own = [self.queue.position(call) for call in self.there if call.client == client]
            assert all(one < next_ for one, next_ in pairwise(own))


def test_turns_are_fair_whatever_happens() -> None:
    run_state_machine_as_test(
        Waiting, settings=settings(max_examples=60, stateful_step_count=50, deadline=None)
    )


@given(st.lists(CLIENTS, max_size=40))
def test_clients_are_served_by_turns(clients: list[str]) -> None:
    queue: FairQueue[Call] = FairQueue()
    for number, client in enumerate(clients):
        queue.push(Call(client, number))
    served = [queue.pop() for _ in clients]
    rounds = [sum(e.client == call.client for e in served[:i]) for i, call in enumerate(served)]
    assert rounds == sorted(rounds), "no client has a second turn before all have had their first"
    with pytest.raises(IndexError):
        queue.pop()


def test_one_call_among_five_hundred_is_next() -> None:
    queue: FairQueue[Call] = FairQueue()
    for number in range(500):
        queue.push(Call("many", number))
    single = Call("one", 500)
    queue.push(single)
    assert queue.position(single) == 2 and queue.next_position("many") == 502
    assert [queue.pop().client for _ in range(3)] == ["many", "one", "many"]
