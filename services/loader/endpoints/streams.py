"""The calls that are open on one connection of a model endpoint."""

from __future__ import annotations

PROBE = 1
"""A flag of an open stream: it neither counts nor holds."""
SENT = 2
"""The client has sent all: it is the backend's turn."""
BEGUN = 4
"""The response's headers were passed on."""


class OpenStreams:
    """Streams by number, each with its flags."""

    __slots__ = ("calls", "flags", "last", "limit")

    def __init__(self) -> None:
        """Begin with none."""
        self.flags: dict[int, int] = {}
        self.calls = 0
        """Open streams that are no probes."""
        self.last = 0
        """The highest stream that the client has opened."""
        self.limit = 2**31 - 1
        """The highest one that the backend will work on."""

    def opened(self, stream: int, flags: int) -> None:
        """Take note of a new one."""
        self.flags[stream] = flags
        self.calls += not flags & PROBE

    def ended(self, stream: int) -> int:
        """Take note that one is over; returns how many calls ended with it: 0 or 1."""
        flags = self.flags.pop(stream, PROBE)
        if flags & PROBE:
            return 0
        self.calls -= 1
        return 1

    def sent(self, stream: int) -> None:
        """Take note that the client has sent all."""
        flags = self.flags.get(stream)
        if flags is not None:
            self.flags[stream] = flags | SENT

    def ended_above(self, stream: int) -> int:
        """Take note that the backend will not work on streams above this one; returns ended calls."""
        self.limit = min(self.limit, stream)
        return sum(map(self.ended, [one for one in self.flags if one > stream]))
