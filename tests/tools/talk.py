"""A call with messages in both directions; the test decides when each is sent and read."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from typing import Any

from tests.tools.outcomes import Metadata, Outcome, Step, call_name, kind_of, outcome, steps
from tests.tools.waiting import eventually_sync
from tests.tools.ways import Way, finish

END = None


class Talk:
    """A call of the sync client; the test sends its requests one by one."""

    def __init__(
        self,
        way: Way,
        *told: Step,
        name: str = "Forward",
        kind: str = "",
        metadata: Metadata = (),
        **more: Any,
    ) -> None:
        self.way = way
        self.id = call_name()
        self.messages: list[bytes] = []
        self.taken = 0
        """Number of messages that gRPC has taken; it takes the next once the last is on its way."""
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        named = (*metadata, ("fake-call", self.id), *steps(*told))
        kind = self._kind = kind or kind_of(name)
        given = self._given() if kind.startswith("stream") else b""
        self.call = way.start(name, given, kind=kind, metadata=named, **more)

    def _given(self) -> Iterator[bytes]:
        while (message := self._requests.get()) is not END:
            self.taken += 1
            yield message

    def send(self, message: bytes) -> None:
        self._requests.put(message)

    def half_close(self) -> None:
        self._requests.put(END)

    def read(self) -> bytes:
        message: bytes = next(self.call)
        self.messages.append(message)
        return message

    def finish(self) -> Outcome:
        """Read to the end, and return the outcome of the whole call."""
        rest = finish(self.call, self._kind)
        self.half_close()  # gRPC does not stop the thread that reads the requests
        return outcome(self.call, [*self.messages, *rest.messages])

    def progress(self) -> dict[str, Any]:
        """Return the call's progress at the backend."""
        return progress(self.way, self.id)

    def ended(self, how: str) -> None:
        """Wait until the call has ended at the backend in this way."""
        end = eventually_sync(lambda: self.progress()["end"], what=f"the end at {self.way}")
        assert end == how, self.way

    def arrived(self) -> None:
        """Wait until the backend has the call."""
        eventually_sync(lambda: self.progress()["seen"], what=f"{self.id} at the backend")


def progress(way: Way, name: str) -> dict[str, Any]:
    """Return a call's progress at the backend."""
    answer: dict[str, Any] = json.loads(way.ask("Predict", [b""], ("progress", name)).messages[0])
    return answer


def release(way: Way, name: str) -> None:
    """Release the calls that wait for this at the backend."""
    way.ask("Predict", [b""], ("release", name), ("write", 0, 1))
