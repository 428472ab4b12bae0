"""One backend that holds one model: its process, its connection, and the leases of the calls on it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from services.common.errors import CorralError
from services.loader.backends.catalog import Backend
from services.loader.models.catalog import ModelEntry
from services.loader.processes.interface import BackendProcess

CALLS: Final = 64
"""Durations of calls that are kept: enough that one in ten is no accident, few enough to follow a change."""


@dataclass(frozen=True, slots=True)
class LoadAnswer:
    """What a backend said to LoadModel."""

    success: bool
    message: str


class Connection(Protocol):
    """The calls that the control plane makes to a backend. Failures are CorralErrors."""

    address: str

    async def health(self, timeout: float) -> bool:
        """Whether the backend answers that it is well."""
        ...

    async def load(self, options: Mapping[str, Any], timeout: float) -> LoadAnswer:
        """Make the backend load the model with these options, by the field of LoadModel's request."""
        ...

    async def free(self, timeout: float) -> None:
        """Tell the backend to let go of the model; one that cannot is no error."""
        ...

    async def close(self) -> None:
        """Close the connection; running calls end."""
        ...


@dataclass(slots=True, eq=False)
class Instance:
    """The running thing behind one generation of a model."""

    uid: str
    generation: int
    model: str
    backend: Backend
    entry: ModelEntry
    """The model as it was when this instance was begun."""
    started: float
    """Seconds since the epoch."""
    begun: float = field(default_factory=time.monotonic)
    """The same by the monotonic clock."""
    process: BackendProcess | None = None
    connection: Connection | None = None
    address: str = ""
    token: str = ""
    ready: float | None = None
    load_message: str = ""
    adopted: bool = False
    """Taken over from a loader that ran before."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes by device, as measured last; empty before the first time."""
    stopping: bool = False
    """It is being ended; whatever it does now is no crash."""
    outdated: bool = False
    """The model's configuration or file is another one by now."""
    superseded: bool = False
    """Its backend was replaced by another version."""
    active: int = 0
    total: int = 0
    last_used: float | None = None
    ready_since: float = 0.0
    """By the monotonic clock; 0 before it is ready."""
    idle_since: float = 0.0
    """When the last call ended, or when it was ready; by the monotonic clock."""
    load_seconds: float = 0.0
    """From its start to ready."""
    leases: set[Lease] = field(default_factory=set)
    direct: int = 0
    """Leases of clients that call the backend themselves; each holds, and none shows as an active call."""
    holds: int = 0
    """Leases that keep the instance from being taken away: all but those of probes."""
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=CALLS))
    """Seconds that the last calls took."""
    ended: asyncio.Future[CorralError] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Set to the error for its calls when the backend has ended or is being ended."""

    @property
    def pid(self) -> int:
        """The first process; 0 if it runs elsewhere."""
        return self.process.pid if self.process else 0

    def is_ready(self) -> None:
        """Take note that it holds the model now."""
        self.ready = time.time()
        self.ready_since = self.idle_since = time.monotonic()
        self.load_seconds = self.ready_since - self.begun

    def is_used(self) -> float:
        """Take note that somebody uses it now; return when that is, by the monotonic clock."""
        self.last_used = time.time()
        self.idle_since = now = time.monotonic()
        return now

    @property
    def leaving(self) -> str:
        """Why it is to go as soon as nothing holds it, for people; empty if it may stay."""
        if self.outdated or self.superseded:
            return "its configuration, its file or its backend changed"
        return ""

    @property
    def stuck_since(self) -> float | None:
        """Since when the call that stands still the longest makes no progress; monotonic; None without calls."""
        return min((lease.progress for lease in self.leases if lease.used), default=None)

    def end(self, error: CorralError) -> None:
        """End every lease with the error; the first error stays."""
        if not self.ended.done():
            self.ended.set_result(error)
        for lease in list(self.leases):
            lease.cut()

    def drain(self) -> None:
        """Tell whoever could begin calls without asking that there are to be no more."""
        for lease in list(self.leases):
            lease.drain()

    async def answers(self, timeout: float) -> bool:
        """Whether the backend says that it is well; no as soon as it has ended."""
        if self.connection is None or self.ended.done():
            return False
        health = asyncio.ensure_future(_is_well(self.connection, timeout))
        first: list[asyncio.Future[Any]] = [health, self.ended]
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            return health.done() and health.result()
        finally:
            health.cancel()

    async def wait_ended(self, timeout: float) -> CorralError | None:
        """Return the error that the instance ended with, waiting `timeout` seconds for it to end."""
        await asyncio.wait([self.ended], timeout=timeout)
        return self.ended.result() if self.ended.done() else None


async def _is_well(connection: Connection, timeout: float) -> bool:
    try:
        return await connection.health(timeout)
    except CorralError:
        return False


class Lease:
    """A hold on an instance: while it is held, the instance is not taken away.

    Only a lease that is used counts as a call: a load that was asked for holds without using, and a
    probe does not even hold, so that nobody keeps a model by looking at it. A context manager;
    `release` is idempotent.
    """

    __slots__ = (
        "_began",
        "_on_cut",
        "_released",
        "holds",
        "instance",
        "load_time",
        "progress",
        "queue_time",
        "used",
    )

    def __init__(
        self, instance: Instance, released: Callable[[Instance], None], *, holds: bool = True
    ) -> None:
        """Take hold; `released` is called once, when it is let go."""
        self.instance = instance
        self.holds = holds
        instance.holds += holds
        self._released: Callable[[Instance], None] | None = released
        self._on_cut: Callable[[], object] | None = None
        self._began = 0.0
        self.used = False
        self.queue_time = 0.0
        """Seconds that the call waited, for room or for a place, apart from `load_time`."""
        self.load_time = 0.0
        """Seconds that the call waited for the model to start and load."""
        self.progress = math.inf
        """When something was last delivered, by the monotonic clock; infinity while the client is to act."""
        instance.leases.add(self)

    def use(self) -> None:
        """Count a call that begins now and ends when the lease is released."""
        if not self.used:
            self.used = True
            self.instance.active += 1
            self.instance.total += 1
            self.instance.last_used = time.time()
            self._began = self.progress = time.monotonic()

    def progresses(self) -> None:
        """The backend delivered something, or is to act again: it is alive."""
        self.progress = time.monotonic()

    def awaits_client(self) -> None:
        """It is the client's turn, which is no fault of the backend's."""
        self.progress = math.inf

    def on_cut(self, action: Callable[[], object]) -> None:
        """Call `action` if the instance goes away while the lease is held."""
        self._on_cut = action
        if self.instance.ended.done():
            action()

    def cut(self) -> None:
        """The instance goes away."""
        if self._on_cut:
            self._on_cut()

    def drain(self) -> None:
        """The instance is to take no more calls; this one goes on."""

    def release(self) -> None:
        """Let go."""
        released, self._released = self._released, None
        if released is None:
            return
        instance = self.instance
        if self.used:
            instance.active -= 1
            instance.durations.append(instance.is_used() - self._began)
        instance.leases.discard(self)
        instance.holds -= self.holds
        self._on_cut = None
        released(instance)

    def __enter__(self) -> Instance:
        """Return the instance."""
        return self.instance

    def __exit__(self, *_: object) -> None:
        """Let go."""
        self.release()
