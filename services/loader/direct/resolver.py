"""Resolves models for clients that call a backend directly: its address, token, lease and advice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from services.loader.instances.instance import Instance, Lease
from services.loader.views.model import InstanceView, ModelView, instance_view

from .lease_book import DirectLease, LeaseBook, LeaseLimits


class Advice(Enum):
    """What the holder of a lease should do; the names are those on the wire."""

    KEEP = "keep"
    YIELD = "yield"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Resolution:
    """The address of a model, its lease, and the advice to the lease's holder."""

    address: str
    token: str
    lease: str
    expires: float | None
    """Seconds since the epoch; None if the lease ends with its stream."""
    instance: InstanceView
    advice: Advice
    why: str


class Models(Protocol):
    """The models, as direct clients need them."""

    def hold(self, name: str) -> Awaitable[Lease]:
        """Load the model if necessary, and return a lease that is not a call."""
        ...

    def draining(self, instance: Instance) -> str:
        """Why the instance is being unloaded, for people; empty if it is not."""
        ...

    def wanting_room(self) -> str:
        """Which model waits for room, for people; empty if none does."""
        ...

    def listen(self, listener: Callable[[str, ModelView | None], None]) -> None:
        """Call `listener` after every change of a model."""
        ...


class Resolutions:
    """Grants leases, ends them when they expire, and sends advice to clients that hold one by a stream."""

    def __init__(
        self,
        models: Models,
        limits: LeaseLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Subscribe to changes of the models."""
        self._models = models
        self._clock = clock
        self._book = LeaseBook(limits, clock)
        self._timer: asyncio.TimerHandle | None = None
        self._news: dict[str, _News] = {}
        """The state of each advice stream, by lease."""
        models.listen(lambda name, model: self._look())

    async def resolve(self, name: str, *, lease: str, duration: float | None) -> Resolution:
        """Return the model's address, loading it if necessary; `lease` is the lease to renew, or empty.

        Raises the errors of a load, LeaseNotFoundError, TooManyLeasesError and InvalidRequestError.
        """
        if lease:
            return self._resolution(self._timed(self._book.renew(name, lease, duration)))
        self._book.check(duration)
        hold = await self._models.hold(name)
        try:
            granted = self._book.grant(name, hold, duration)
        except BaseException:
            hold.release()
            raise
        # Not at once: this is called while the instance is still being ended.
        loop = asyncio.get_running_loop()
        hold.on_cut(lambda: loop.call_soon(self._book.forget, granted.key))
        return self._resolution(self._timed(granted))

    async def hold(self, name: str) -> AsyncGenerator[Resolution, None]:
        """Yield the model's address, then each change of the advice; release the lease when closed.

        Ends when the lease is released elsewhere; raises the errors of a load, and the error that the
        instance ended with.
        """
        self._book.check()
        hold = await self._models.hold(name)
        news = _News()
        try:
            lease = self._book.attach(name, hold, news.end)
        except BaseException:
            hold.release()
            raise
        try:
            self._news[lease.key] = news
            hold.on_cut(news.changed.set)
            while not news.ended:
                if hold.instance.ended.done():
                    raise hold.instance.ended.result()
                news.changed.clear()
                found = self._resolution(lease)
                if found.advice is not news.sent:
                    news.sent = found.advice
                    yield found
                    continue  # the advice may have changed while the reader was busy
                await news.changed.wait()
        finally:
            self._news.pop(lease.key, None)
            self._book.release(lease.key)

    def release(self, lease: str) -> None:
        """End a lease, if it exists. Idempotent."""
        self._book.release(lease)

    def close(self) -> None:
        """End every lease, so that only the loader uses the instances."""
        if self._timer is not None:
            self._timer.cancel()
        self._book.close()

    def _resolution(self, lease: DirectLease) -> Resolution:
        instance = lease.instance
        advice, why = self._advice(instance)
        left = None if lease.expires is None else lease.expires - self._clock()
        return Resolution(
            address=instance.address,
            token=instance.token,
            lease=lease.key,
            expires=None if left is None else time.time() + left,
            instance=instance_view(instance),
            advice=advice,
            why=why,
        )

    def _advice(self, instance: Instance) -> tuple[Advice, str]:
        if why := self._models.draining(instance):
            return Advice.MOVE, why
        if why := instance.leaving or self._models.wanting_room():
            return Advice.YIELD, why
        return Advice.KEEP, ""

    def _look(self) -> None:
        """Wake the streams whose advice has changed."""
        for lease in self._book.leases() if self._news else ():
            news = self._news.get(lease.key)
            if news is not None and self._advice(lease.instance)[0] is not news.sent:
                news.changed.set()

    def _timed(self, lease: DirectLease) -> DirectLease:
        self._set_timer()
        return lease

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (when := self._book.next_expiry()) is not None:
            delay = max(when - self._clock(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        self._book.expire()
        self._set_timer()


class _News:
    """The advice sent last on one stream, and whether there may be new advice."""

    __slots__ = ("changed", "ended", "sent")

    def __init__(self) -> None:
        self.sent: Advice | None = None
        self.ended = False
        self.changed = asyncio.Event()

    def end(self) -> None:
        self.ended = True
        self.changed.set()
