"""The interface through which an endpoint's connection uses its model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from services.common.errors import CorralError
from services.loader.admission.connection_lease import CountedCalls
from services.loader.admission.meter import Caller
from services.loader.instances.instance import Instance, Lease

from .request_headers import Request


class Model(Protocol):
    """The model behind a connection's endpoint."""

    name: str
    cause_timeout: float
    linger_timeout: float
    handshake_timeout: float
    connect_timeout: float

    async def acquire(self, caller: Caller) -> Lease:
        """Return a lease for a call, loading the model first if it must be. Raises CorralError."""
        ...

    def probe(self) -> Instance | None:
        """Return the instance if the model is ready; never loads it."""
        ...

    def count_calls(self, instance: Instance, stands_still: Callable[[], float]) -> CountedCalls:
        """Return a counter for this connection's calls."""
        ...

    def lost(self, instance: Instance, error: CorralError) -> None:
        """Called when an external backend is no longer reachable."""
        ...

    def answer(self, request: Request) -> Coroutine[Any, Any, bytes] | bytes:
        """Return the response to a request that is not passed to a backend. Raises CorralError."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a background task."""
        ...

    def closed(self, connection: Any) -> None:
        """Called when the connection is closed."""
        ...
