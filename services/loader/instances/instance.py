"""One backend that holds one model: its process, its connection, and the leases of the calls on it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.common.errors import CorralError
from services.loader.backends.catalog import Backend
from services.loader.models.catalog import ModelEntry
from services.loader.processes.interface import BackendProcess

from .call_counts import CallCounts


@dataclass(frozen=True, slots=True)
class LoadAnswer:
    """The answer of a backend to LoadModel."""

    success: bool
    message: str


class Connection(Protocol):
    """The calls that the control plane makes to a backend. Failures are CorralErrors."""

    address: str

    async def health(self, timeout: float) -> bool:
        """Whether the backend answers OK to Health."""
        ...

    async def load(self, options: Mapping[str, Any], timeout: float) -> LoadAnswer:
        """Make the backend load the model with these options, by the field of LoadModel's request."""
        ...

    async def free(self, timeout: float) -> None:
        """Ask the backend to release the model; a backend without Free is no error."""
        ...

    async def close(self) -> None:
        """Close the connection; running calls end."""
        ...


@dataclass(slots=True, eq=False)
class Instance:
    """One generation of a model: the backend that holds it. Only the methods here change its fields."""

    uid: str
    generation: int
    model: str
    backend: Backend
    entry: ModelEntry
    """The model as it was when this instance was created."""
    started: float
    """Seconds since the epoch."""
    adopted: bool = False
    """An earlier loader started it."""
    address: str = ""
    token: str = ""
    process: BackendProcess | None = None
    connection: Connection | None = None
    ready: float | None = None
    """When it had loaded the model, in seconds since the epoch."""
    ready_since: float = 0.0
    """The same by the monotonic clock, or when it was adopted; 0 before it is ready."""
    load_seconds: float = 0.0
    """From its start to ready."""
    load_message: str = ""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes by device, as last measured; empty before the first time."""
    stopping: bool = False
    """It is being stopped: its exit is no crash."""
    outdated: bool = False
    """The model's configuration or file has changed since."""
    superseded: bool = False
    """Its backend was replaced by another version."""
    calls: CallCounts = field(default_factory=CallCounts)
    leases: set[Lease] = field(default_factory=set)
    ended: asyncio.Future[CorralError] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Set to the error for its calls when the backend has ended or is being ended."""
    _begun: float = field(default_factory=time.monotonic, init=False)

    @property
    def pid(self) -> int:
        """The first process; 0 if it runs elsewhere."""
        return self.process.pid if self.process else 0

    def assign(self, address: str, token: str) -> None:
        """Set the address that the backend serves on, and the token that it expects."""
        self.address, self.token = address, token

    def attach(self, process: BackendProcess) -> None:
        """Set the process of the backend."""
        self.process = process

    def connect(self, connection: Connection) -> None:
        """Set the connection on which the backend answered."""
        self.connection = connection

    def mark_ready(self, load_message: str) -> None:
        """Mark the model as loaded now."""
        self.ready, self.load_message = time.time(), load_message
        self.ready_since = self.calls.mark_loaded()
        self.load_seconds = self.ready_since - self._begun

    def mark_adopted(self, ready: float, load_message: str) -> None:
        """Mark the model as loaded by an earlier loader, at `ready` seconds since the epoch."""
        self.adopted = True
        self.ready, self.load_message = ready, load_message
        self.ready_since = self.calls.mark_loaded()
        self.load_seconds = ready - self.started

    def mark_stopping(self) -> None:
        """Mark the instance as being stopped: its exit is no crash."""
        self.stopping = True

    def renumber(self, generation: int) -> None:
        """Give an adopted instance the generation that its model has now."""
        self.generation = generation

    def set_memory(self, measured: Mapping[str, int]) -> None:
        """Set the memory in use, in bytes by device."""
        self.memory = measured

    def compare_entry(self, revision: str) -> None:
        """Mark the instance as outdated unless the model's configuration has this revision."""
        self.outdated = self.entry.revision != revision

    def compare_backend(self, revision: str) -> None:
        """Mark the instance as superseded unless its backend has this revision."""
        self.superseded = self.backend.revision != revision

    @property
    def leaving(self) -> str:
        """Why it will be unloaded when no lease holds it, for people; empty if it may stay."""
        if self.outdated or self.superseded:
            return "its configuration, its file or its backend changed"
        return ""

    @property
    def stuck_since(self) -> float | None:
        """Since when the call that waits longest has made no progress, by the monotonic clock; None without calls."""
        return min((lease.progress for lease in self.leases if lease.used), default=None)

    def end(self, error: CorralError) -> None:
        """End every lease with the error; the first error stays."""
        if not self.ended.done():
            self.ended.set_result(error)
        for lease in list(self.leases):
            lease.cut()

    def drain(self) -> None:
        """Ask the connections that begin calls without a lease of their own to begin no more."""
        for lease in list(self.leases):
            lease.drain()

    async def answers(self, timeout: float) -> bool:
        """Whether the backend answers Health; no as soon as the instance has ended."""
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
    """A hold on an instance, which is not unloaded while it is held.

    Only a used lease counts as a call: a requested load holds without using, and a probe does not
    even hold, so that no probe keeps a model loaded. A context manager; `release` is idempotent.
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
        """`released` is called once, when the lease is released."""
        self.instance = instance
        self.holds = holds
        self._released: Callable[[Instance], None] | None = released
        self._on_cut: Callable[[], object] | None = None
        self._began = 0.0
        self.used = False
        self.queue_time = 0.0
        """Seconds that the call waited, for memory or for a slot, apart from `load_time`."""
        self.load_time = 0.0
        """Seconds that the call waited for the model to start and load."""
        self.progress = math.inf
        """When the backend last delivered something, by the monotonic clock; infinity while it waits for the client."""
        if holds:
            instance.calls.hold()
        instance.leases.add(self)

    def use(self) -> None:
        """Count a call that begins now and ends when the lease is released."""
        if not self.used:
            self.used = True
            self.instance.calls.begin()
            self._began = self.progress = time.monotonic()

    def on_cut(self, action: Callable[[], object]) -> None:
        """Call `action` if the instance ends while the lease is held."""
        self._on_cut = action
        if self.instance.ended.done():
            action()

    def cut(self) -> None:
        """Called when the instance ends."""
        if self._on_cut:
            self._on_cut()

    def drain(self) -> None:
        """Called when the instance takes no more calls; the call of this lease goes on."""

    def release(self) -> None:
        """End the lease, and its call."""
        released, self._released = self._released, None
        if released is None:
            return
        calls = self.instance.calls
        if self.used:
            calls.end_one(self._began)
        if self.holds:
            calls.let_go()
        self.instance.leases.discard(self)
        self._on_cut = None
        released(self.instance)

    def __enter__(self) -> Instance:
        """Return the instance."""
        return self.instance

    def __exit__(self, *_: object) -> None:
        """Release the lease."""
        self.release()
