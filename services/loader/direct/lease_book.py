"""The leases of clients that call a backend directly, and when they expire. Has no clock."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from services.common.errors import InvalidRequestError, LeaseNotFoundError, TooManyLeasesError
from services.loader.instances.instance import Instance, Lease

_RETRY_AFTER = 1.0
"""Seconds until a refused client may retry: leases are short, and may be released at any time."""


@dataclass(frozen=True, slots=True)
class LeaseLimits:
    """The durations of leases, in seconds, and the most leases at a time."""

    default: float
    maximum: float
    most: int


@dataclass(eq=False, slots=True)
class DirectLease:
    """A client's lease on an instance that it calls directly."""

    name: str
    """The model's name as given by the client, which may be an alias."""
    hold: Lease
    expires: float | None
    """By the book's clock; None if the lease lasts as long as its stream."""
    ended: Callable[[], None]
    """Called once when the lease ends, for any reason."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    """The token that identifies the lease to its client; other clients cannot guess it."""

    @property
    def instance(self) -> Instance:
        """The instance that the lease holds."""
        return self.hold.instance


class LeaseBook:
    """Every lease in force. A lease is in the book exactly as long as it holds its instance."""

    def __init__(self, limits: LeaseLimits, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._limits = limits
        self._clock = clock
        self._leases: dict[str, DirectLease] = {}

    def __len__(self) -> int:
        """Return how many leases are in force."""
        return len(self._leases)

    def leases(self) -> tuple[DirectLease, ...]:
        """Return the leases in force, the oldest first."""
        return tuple(self._leases.values())

    def check(self, duration: float | None = None) -> None:
        """Raise TooManyLeasesError if the limit is reached, InvalidRequestError for an invalid duration."""
        self._until(duration)
        if len(self._leases) >= self._limits.most:
            raise TooManyLeasesError(
                f"the loader has given out {len(self._leases)} direct leases, the maximum"
                " (direct_leases); call through the loader, or retry later",
                retry_after=_RETRY_AFTER,
                metadata={"leases": str(len(self._leases))},
            )

    def grant(self, name: str, hold: Lease, duration: float | None) -> DirectLease:
        """Add a lease for `duration` seconds; None means the default. It counts as a call.

        Raises TooManyLeasesError and InvalidRequestError; the caller must then release `hold`.
        """
        return self._enter(name, hold, self._until(duration), lambda: None)

    def attach(self, name: str, hold: Lease, ended: Callable[[], None]) -> DirectLease:
        """Add a lease that lasts until it is released; then call `ended`. Raises TooManyLeasesError."""
        return self._enter(name, hold, None, ended)

    def renew(self, name: str, key: str, duration: float | None) -> DirectLease:
        """Extend a lease by `duration` from now. Raises LeaseNotFoundError and InvalidRequestError."""
        self.expire()
        lease = self._leases.get(key)
        if lease is None or lease.instance.ended.done():
            raise LeaseNotFoundError(
                "the lease has expired, was released, or its instance has ended; resolve the model"
                " again, without a lease",
                metadata={"model": name},
            )
        if name not in (lease.name, lease.instance.model):
            raise InvalidRequestError.of("lease", f"is for model {lease.name!r}, not for {name!r}")
        until = self._until(duration)
        if (
            lease.expires is not None
        ):  # otherwise it lasts as long as its stream, whatever the duration
            lease.expires = until
        lease.instance.calls.mark_used()
        return lease

    def release(self, key: str) -> None:
        """End a lease and mark its instance as used until now. Idempotent."""
        if lease := self._leases.get(key):
            lease.instance.calls.mark_used()
            self._end(lease)

    def forget(self, key: str) -> None:
        """End a lease without marking its instance as used. Idempotent."""
        if lease := self._leases.get(key):
            self._end(lease)

    def expire(self) -> None:
        """End the leases that have expired."""
        now = self._clock()
        for lease in self.leases():
            if lease.expires is not None and lease.expires <= now:
                self._end(lease)

    def next_expiry(self) -> float | None:
        """Return when `expire` must be called next; None if no lease expires."""
        times = (lease.expires for lease in self._leases.values() if lease.expires is not None)
        return min(times, default=None)

    def close(self) -> None:
        """End all leases."""
        for lease in self.leases():
            self._end(lease)

    def _until(self, duration: float | None) -> float:
        if duration is None:
            duration = self._limits.default
        elif duration <= 0:
            raise InvalidRequestError.of("lease_duration", "is not above zero")
        return self._clock() + min(duration, self._limits.maximum)

    def _enter(
        self, name: str, hold: Lease, expires: float | None, ended: Callable[[], None]
    ) -> DirectLease:
        self.check()
        lease = DirectLease(name, hold, expires, ended)
        self._leases[lease.key] = lease
        hold.instance.calls.open_direct()
        return lease

    def _end(self, lease: DirectLease) -> None:
        del self._leases[lease.key]
        lease.instance.calls.close_direct()
        lease.hold.release()
        lease.ended()
