"""A queue that is fair among clients: they take turns, and each one's tickets are served in order.

Pure, without a clock. Every change takes constant time; `position` visits each client once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Ticket(Protocol):
    """An entry in the queue; equal only to itself."""

    @property
    def client(self) -> str:
        """Tickets with the same client share one turn."""
        ...


T = TypeVar("T", bound=Ticket)


class FairQueue(Generic[T]):
    """A queue in which a client's turn does not depend on how many tickets other clients have.

    A ticket behind n others of its client is served after at most (n + 1) x the number of clients.
    """

    def __init__(self) -> None:
        """The queue is empty at first."""
        # The clients are in the order of their turns.
        self._clients: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        self._having: dict[int, dict[str, None]] = {}
        """Clients by their number of tickets."""
        self._most = 0
        self.length = 0
        """The number of waiting tickets, as len(), but faster: it is read at every call."""

    def __len__(self) -> int:
        """Return the number of waiting tickets."""
        return self.length

    def __contains__(self, ticket: T) -> bool:
        """Whether the ticket waits here."""
        return ticket in self._clients.get(ticket.client, ())

    def count(self, client: str) -> int:
        """Return the number of a client's waiting tickets."""
        return len(self._clients.get(client, ()))

    def push(self, ticket: T) -> None:
        """Add a ticket behind those of its client; a new client has its turn after all others."""
        own = self._clients.setdefault(ticket.client, OrderedDict())
        own[ticket] = None
        self.length += 1
        self._recount(ticket.client, len(own) - 1, len(own))

    def pop(self) -> T:
        """Remove and return the next ticket. Raises IndexError if the queue is empty."""
        if not self._clients:
            raise IndexError("the queue is empty")
        client, own = next(iter(self._clients.items()))
        ticket = next(iter(own))
        self.remove(ticket)
        if own:
            self._clients.move_to_end(client)
        return ticket

    def remove(self, ticket: T) -> None:
        """Remove a ticket. Raises KeyError if it is not in the queue."""
        own = self._clients[ticket.client]
        del own[ticket]
        self.length -= 1
        self._recount(ticket.client, len(own) + 1, len(own))
        if not own:
            del self._clients[ticket.client]

    def __iter__(self) -> Iterator[T]:
        """Iterate over the tickets in the order of service, if no ticket is added or removed."""
        lines = deque(iter(own) for own in self._clients.values())
        while lines:
            line = lines.popleft()
            for ticket in line:
                yield ticket
                lines.append(line)
                break

    def position(self, ticket: T) -> int:
        """Return the ticket's position, from 1: the turns until it is served, if the queue stays as it is."""
        own = self._clients[ticket.client]
        newest = next(reversed(own)) is ticket
        return self._place(ticket.client, len(own) - 1 if newest else list(own).index(ticket))

    def next_position(self, client: str) -> int:
        """Return the position that another ticket of this client would have."""
        return self._place(client, self.count(client))

    def _place(self, client: str, before: int) -> int:
        """Return the position of a ticket with `before` others of its client ahead of it."""
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
        """Return the ticket to remove for a new one of this client when the queue is full.

        It is the newest of the client with the most tickets, if that client then still has as many as
        the new ticket's client; None if the new ticket must be refused instead.
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
        # Counts change by one: if no client has `_most` any more, this client now has the most.
        if now > self._most or self._most not in self._having:
            self._most = now
