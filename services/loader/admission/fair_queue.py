"""Who waits, by client: clients take turns, and each client's own are served in the order in which they came.

Pure, without a clock. Every change takes constant time; `position` looks once at each client.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Ticket(Protocol):
    """One that waits; equal to itself only."""

    @property
    def client(self) -> str:
        """Whoever shares this shares one turn."""
        ...


T = TypeVar("T", bound=Ticket)


class FairQueue(Generic[T]):
    """A queue in which nobody's turn depends on how many others have queued.

    A ticket before which its client has n others is served after at most (n + 1) x the number of clients.
    """

    def __init__(self) -> None:
        """Begin with nobody."""
        # The order of the clients is that of their turns.
        self._clients: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        self._having: dict[int, dict[str, None]] = {}
        """Clients by how many tickets they have."""
        self._most = 0
        self.length = 0
        """How many wait; the same as len(), for where that is asked at every call."""

    def __len__(self) -> int:
        """Return how many wait."""
        return self.length

    def __contains__(self, ticket: T) -> bool:
        """Whether it waits here."""
        return ticket in self._clients.get(ticket.client, ())

    def count(self, client: str) -> int:
        """Return how many of a client wait."""
        return len(self._clients.get(client, ()))

    def push(self, ticket: T) -> None:
        """Add one behind those of its client; a client that had none has its turn after all others."""
        own = self._clients.setdefault(ticket.client, OrderedDict())
        own[ticket] = None
        self.length += 1
        self._recount(ticket.client, len(own) - 1, len(own))

    def pop(self) -> T:
        """Take out the one whose turn it is. Raises IndexError if nobody waits."""
        if not self._clients:
            raise IndexError("the queue is empty")
        client, own = next(iter(self._clients.items()))
        ticket = next(iter(own))
        self.remove(ticket)
        if own:
            self._clients.move_to_end(client)
        return ticket

    def remove(self, ticket: T) -> None:
        """Take out one that leaves. Raises KeyError if it does not wait here."""
        own = self._clients[ticket.client]
        del own[ticket]
        self.length -= 1
        self._recount(ticket.client, len(own) + 1, len(own))
        if not own:
            del self._clients[ticket.client]

    def __iter__(self) -> Iterator[T]:
        """Go through all in the order in which they are served, if nobody comes or leaves."""
        lines = deque(iter(own) for own in self._clients.values())
        while lines:
            line = lines.popleft()
            for ticket in line:
                yield ticket
                lines.append(line)
                break

    def position(self, ticket: T) -> int:
        """Return its place, from 1: as many turns as it takes to be served, if nobody comes or leaves."""
        own = self._clients[ticket.client]
        newest = next(reversed(own)) is ticket
        return self._place(ticket.client, len(own) - 1 if newest else list(own).index(ticket))

    def next_position(self, client: str) -> int:
        """Return the place that one more of this client would have."""
        return self._place(client, self.count(client))

    def _place(self, client: str, before: int) -> int:
        """Return the place of one before which its client has so many."""
        if client not in self._clients:
            return len(self._clients) + 1
        place, ahead = before + 1, 1
        for other, tickets in self._clients.items():
            if other == client:
                ahead = 0
            else:
                place += min(len(tickets), before + ahead)
        return place

    def crowding(self, client: str) -> T | None:
        """Return who has to go for a newcomer of this client when no more may wait.

        The newest of the client that has the most, if that one still has as many afterwards as the
        newcomer's; None if the newcomer has to go itself.
        """
        if self._most < self.count(client) + 2:
            return None
        greedy = next(iter(self._having[self._most]))
        return next(reversed(self._clients[greedy]))

    def _recount(self, client: str, before: int, now: int) -> None:
        if before:
            peers = self._having[before]
            del peers[client]
            if not peers:
                del self._having[before]
        if now:
            self._having.setdefault(now, {})[client] = None
        # One more or one fewer: if nobody has that many any more, this client has one fewer.
        if now > self._most or self._most not in self._having:
            self._most = now
