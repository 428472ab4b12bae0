"""The queue in front of the engine: which requests run, wait or are refused.

llama.cpp has its own queue, but a request that waits there cannot be cancelled. So requests
wait here until a slot is free.
"""

import asyncio
from collections import deque

from .errors import Exhausted, Unloaded


class Admission:
    """Lets at most `slots` requests run, first come first served; `max_queue` may wait.

    Used from one event loop only. A slot stays taken until `release`, also if the caller that
    acquired it is cancelled: its work may still go on.
    """

    def __init__(self, slots: int, max_queue: int) -> None:
        """Every slot is free, and the queue is empty."""
        self.slots = slots
        self.max_queue = max_queue
        self._free = list(range(slots - 1, -1, -1))
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._closed = False

    @property
    def running(self) -> int:
        """How many slots are taken."""
        return self.slots - len(self._free)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting)

    async def acquire(self) -> int:
        """Wait for a slot and return its number; the caller owes one `release` for it.

        Raises:
            Exhausted: `max_queue` requests wait already.
            Unloaded: the queue was closed, before the call or during the wait.
        """
        if self._closed:
            raise Unloaded("the model is being unloaded")
        if self._free and not self._waiting:
            return self._free.pop()
        if len(self._waiting) >= self.max_queue:
            raise Exhausted(
                f"the queue is full: {len(self._waiting)} requests wait for {self.slots} slots; "
                "try again later, or load the model with more parallel slots or a larger max_queue"
            )
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            # The slot may have been given in the same step of the loop: pass it on.
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release(turn.result())
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def release(self, slot: int) -> None:
        """Give the slot to the request that has waited longest, or free it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(slot)
                return
        self._free.append(slot)

    def close(self) -> None:
        """Refuse all waiting and new requests; running ones continue."""
        self._closed = True
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(Unloaded("the model was unloaded while the request waited"))
