"""One backend that holds one model: its process, its connection, and the leases of the calls on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.common.errors import CorralError

from .backend_catalog import Backend
from .model_catalog import ModelEntry
from .process import BackendProcess


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

    async def load(self, entry: ModelEntry, backend: str, timeout: float) -> LoadAnswer:
        """Tell the backend to read the model."""
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
    process: BackendProcess | None = None
    connection: Connection | None = None
    address: str = ""
    token: str = ""
    ready: float | None = None
    load_message: str = ""
    outdated: bool = False
    """The model's configuration or file is another one by now."""
    active: int = 0
    total: int = 0
    last_used: float | None = None
    leases: set[Lease] = field(default_factory=set)
    ended: asyncio.Future[CorralError] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Set to the cause when the backend has ended or was cut off."""

    @property
    def pid(self) -> int:
        """The first process; 0 if it runs elsewhere."""
        return self.process.pid if self.process else 0

    def end(self, cause: CorralError) -> None:
        """Say why the backend is gone, to whoever asks or holds a lease; the first cause stays."""
        if not self.ended.done():
            self.ended.set_result(cause)
        for lease in list(self.leases):
            lease.cut()

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

    async def cause(self, timeout: float) -> CorralError | None:
        """Return why the backend is gone, waiting a moment for it to become known."""
        await asyncio.wait([self.ended], timeout=timeout)
        return self.ended.result() if self.ended.done() else None


async def _is_well(connection: Connection, timeout: float) -> bool:
    try:
        return await connection.health(timeout)
    except CorralError:
        return False


class Lease:
    """A hold on an instance: while it is held, the instance is not taken away.

    Only a lease that is used counts as a call; a probe, or a load that was asked for, holds without
    using. A context manager; `release` is idempotent.
    """

    __slots__ = ("_on_cut", "_released", "_used", "instance")

    def __init__(self, instance: Instance, released: Callable[[Instance], None]) -> None:
        """Take hold; `released` is called once, when it is let go."""
        self.instance = instance
        self._released: Callable[[Instance], None] | None = released
        self._on_cut: Callable[[], object] | None = None
        self._used = False
        instance.leases.add(self)

    def use(self) -> None:
        """Count a call that begins now and ends when the lease is released."""
        if not self._used:
            self._used = True
            self.instance.active += 1
            self.instance.total += 1
            self.instance.last_used = time.time()

    def on_cut(self, action: Callable[[], object]) -> None:
        """Call `action` if the instance goes away while the lease is held."""
        self._on_cut = action
        if self.instance.ended.done():
            action()

    def cut(self) -> None:
        """The instance goes away."""
        if self._on_cut:
            self._on_cut()

    def release(self) -> None:
        """Let go."""
        released, self._released = self._released, None
        if released is None:
            return
        if self._used:
            self.instance.active -= 1
            self.instance.last_used = time.time()
        self.instance.leases.discard(self)
        self._on_cut = None
        released(self.instance)

    def __enter__(self) -> Instance:
        """Return the instance."""
        return self.instance

    def __exit__(self, *_: object) -> None:
        """Let go."""
        self.release()
