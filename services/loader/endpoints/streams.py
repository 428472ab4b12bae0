"""The open calls of one connection of a model endpoint."""

from __future__ import annotations

PROBE = 1
"""A flag of an open stream: a probe, which neither counts as a call nor holds the model."""
SENT = 2
"""The client has ended its side: the backend owes the response."""
BEGUN = 4
"""The response's headers were passed on."""


class OpenStreams:
    """The open streams by number, each with its flags."""

    __slots__ = ("calls", "flags", "last", "limit")

    def __init__(self) -> None:
        """Start without streams."""
        self.flags: dict[int, int] = {}
        self.calls = 0
        """The number of open streams that are not probes."""
        self.last = 0
        """The highest stream that the client has opened."""
        self.limit = 2**31 - 1
        """The highest stream that the backend will process."""

    def opened(self, stream: int, flags: int) -> None:
        """Add a new stream."""
        self.flags[stream] = flags
        self.calls += not flags & PROBE

    def ended(self, stream: int) -> int:
        """Remove an ended stream; return the number of calls that ended with it: 0 or 1."""
        flags = self.flags.pop(stream, PROBE)
        if flags & PROBE:
            return 0
        self.calls -= 1
        return 1

    def sent(self, stream: int) -> None:
        """Mark that the client has ended its side of the stream."""
        flags = self.flags.get(stream)
        if flags is not None:
            self.flags[stream] = flags | SENT

    def ended_above(self, stream: int) -> int:
        """Remove the streams above this one, which the backend refused; return the ended calls."""
        self.limit = min(self.limit, stream)
        return sum(map(self.ended, [one for one in self.flags if one > stream]))
