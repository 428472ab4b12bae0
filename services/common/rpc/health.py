"""The standard health service, by service name, for probes, load balancers and watchers.

The servicer in grpcio-health-checking is not used because its asyncio version has two faults: when
one watcher leaves, the others get no more notifications, and it writes to clients while it holds the
lock, so one slow watcher blocks every change of state.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.process.logging import get_logger

SERVICE: Final[str] = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_Status = health_pb2.HealthCheckResponse
_log = get_logger(__name__)


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Reports for each service name whether it serves; `set` never waits for a watcher."""

    def __init__(self) -> None:
        """Start without services; the name "" means the whole process."""
        self._serving: dict[str, bool] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._stopping = asyncio.Event()

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the process starts to stop; endless streams should end then."""
        return self._stopping

    @property
    def statuses(self) -> Mapping[str, bool]:
        """Whether each known service serves."""
        return dict(self._serving)

    @property
    def watched(self) -> Mapping[str, int]:
        """The number of watchers of each watched service."""
        return {service: len(watchers) for service, watchers in self._watchers.items()}

    def add_to(self, server: grpc.aio.Server) -> None:
        """Add the service to a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def set(self, service: str, serving: bool, why: str = "") -> None:
        """Set whether a service serves; a change is logged with its reason. Ignored after shut_down."""
        if self._stopping.is_set() or self._serving.get(service) is serving:
            return
        first = service not in self._serving
        self._serving[service] = serving
        # The first status is part of every start; only changes are worth a line.
        log = _log.debug if first else _log.info
        log("health changed", health_of=service or "*", serving=serving, why=why)
        self._wake(service)

    def forget(self, service: str) -> None:
        """Remove a service; its watchers get SERVICE_UNKNOWN. Ignored after shut_down."""
        if not self._stopping.is_set() and self._serving.pop(service, None) is not None:
            self._wake(service)

    def shut_down(self) -> None:
        """Report NOT_SERVING for all services from now on; watchers get it, and their streams end."""
        if self._stopping.is_set():
            return
        if self._serving:
            _log.info("health changed", health_of="*", serving=False, why="shutting down")
        self._serving = dict.fromkeys(self._serving, False)
        self._stopping.set()
        for service in list(self._watchers):
            self._wake(service)

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Return whether a service serves; NOT_FOUND for an unknown one."""
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return _Status(status=self._status(request.service))

    async def Watch(
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """Stream a service's status: now, and after each change.

        Changes while the client does not read may be skipped, but never the last one. The stream ends
        when the process stops, so that it does not delay the drain.
        """
        service = request.service
        changed = asyncio.Event()
        watchers = self._watchers.setdefault(service, set())
        watchers.add(changed)
        sent = None
        try:
            while True:
                changed.clear()
                last = self._stopping.is_set()
                if (now := self._status(service)) != sent:
                    sent = now
                    yield _Status(status=now)
                if last:
                    return
                await changed.wait()
        finally:
            watchers.discard(changed)
            if not watchers and self._watchers.get(service) is watchers:
                del self._watchers[service]

    def _status(self, service: str) -> Any:
        if service not in self._serving:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._serving[service] else _Status.NOT_SERVING

    def _wake(self, service: str) -> None:
        for changed in self._watchers.get(service, ()):
            changed.set()
