"""Opens and closes the endpoints of all models as models come and go."""

from __future__ import annotations

import asyncio
import os
import resource
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import DeadlineError, ModelConfigError
from services.common.process.logging import get_logger
from services.common.tasks import Background, wait_until
from services.loader.loader import Loader
from services.loader.models.catalog import ModelEntry
from services.loader.models.config import AUTO
from services.loader.views.model import ModelView

from .endpoint import Endpoint, EndpointTimeouts
from .folder import socket_path

_log = get_logger(__name__)

_BATCH = 20
"""Endpoints to open before open calls get their turn: about a millisecond of work."""
_SPARE = 1024
"""Descriptors for all but the sockets: connections, backends, files. Half of a low limit."""
_DESCRIPTORS = 65536
"""Maximum of the raised soft limit: backends inherit it, and some close every number up to it."""


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """The addresses available to endpoints, and their maximum number."""

    folder: Path | None
    """The folder of the sockets; None for no sockets."""
    mode: int
    ports: range
    """The ports for models that ask for any port."""
    limit: int
    timeouts: EndpointTimeouts


class Endpoints:
    """The endpoints of all models."""

    def __init__(self, loader: Loader, settings: EndpointSettings, tasks: Background) -> None:
        """Create the manager without endpoints; `follow` opens them."""
        self._loader = loader
        self._settings = settings
        self._tasks = tasks
        self._open: dict[str, Endpoint] = {}
        self._errors: dict[str, str] = {}
        self._seen: dict[str, ModelEntry] = {}
        self._ports: dict[int, str] = {}
        self._leaving: set[Endpoint] = set()
        """Endpoints of removed models that still have open calls."""
        self._dirty: dict[str, None] = {}
        self._changed = asyncio.Event()
        self._refusing = False
        self._refusing_since = 0.0
        self._told = False

    def addresses(self, name: str) -> tuple[str, ...]:
        """Return the addresses of the model's endpoint."""
        endpoint = self._open.get(name)
        return endpoint.addresses if endpoint else ()

    def error(self, name: str) -> str:
        """Return why the model lacks an address it should have; empty if it has all of them."""
        return self._errors.get(name, "")

    @property
    def calls(self) -> int:
        """The number of open calls through all endpoints."""
        return sum(endpoint.calls for endpoint in (*self._open.values(), *self._leaving))

    def changed(self, name: str, model: ModelView | None = None) -> None:
        """Called when a model was added, changed or removed."""
        if self._seen.get(name) is not self._loader.entries().get(name):
            self._dirty[name] = None
            self._changed.set()

    async def follow(self) -> None:
        """Open and close endpoints as models come and go, forever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            names, self._dirty = self._dirty, {}
            await self._bring_up_to_date(names)

    async def _bring_up_to_date(self, names: Iterable[str]) -> None:
        entries = self._loader.entries()
        wanted = {name: entries[name] for name in names if _usable(entries.get(name))}
        for name in names:
            if name not in wanted:
                self._seen.pop(name, None)
                self._close(name)
        self._make_room(len(wanted))
        # Models that ask for an address come first, in case there are too few for all.
        ordered = sorted(wanted, key=lambda name: (wanted[name].config.endpoint is None, name))
        for done, name in enumerate(ordered, start=1):
            if self._refusing:
                return
            self._seen[name] = wanted[name]
            self._update(name, wanted[name])
            if done % _BATCH == 0:
                await asyncio.sleep(0)
        self._leaving = {endpoint for endpoint in self._leaving if endpoint.connections}

    def _update(self, name: str, entry: ModelEntry) -> None:
        before = (self.addresses(name), self.error(name))
        self._errors.pop(name, None)
        endpoint = self._open.get(name)
        if endpoint is None:
            if len(self._open) >= self._limit():
                self._warn()
                return
            endpoint = Endpoint(name, self._loader, self._settings.timeouts, self._tasks)
            self._open[name] = endpoint
        try:
            self._socket(endpoint)
            self._port(endpoint, entry)
        except (OSError, ModelConfigError) as error:
            text = str(error)
            self._errors[name] = text
            _log.error("a model lacks an endpoint", model=name, why=text)
        if (self.addresses(name), self.error(name)) != before:
            self._publish(name)

    def _socket(self, endpoint: Endpoint) -> None:
        folder = self._settings.folder
        if folder is None or any(one.startswith("unix:") for one in endpoint.addresses):
            return
        path = socket_path(folder, endpoint.name)
        try:
            endpoint.listen_at(path, self._settings.mode)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot listen on {path}: {os.strerror(error.errno or 0)}"
            ) from error

    def _port(self, endpoint: Endpoint, entry: ModelEntry) -> None:
        wanted = entry.config.endpoint.port if entry.config.endpoint else None
        current = next(map(_port_of, filter(_port_of, endpoint.addresses)), None)
        if current is not None:
            if wanted == current or (wanted == AUTO and current in self._settings.ports):
                return
            del self._ports[current]
            endpoint.stop_listening(f"127.0.0.1:{current}")
        if wanted is None:
            return
        if wanted == AUTO:
            self._any_port(endpoint)
            return
        assert isinstance(wanted, int)
        if taken := self._ports.get(wanted):
            raise ModelConfigError(
                f"endpoint.port: model {taken!r} has port {wanted}; choose another, or `auto`"
            )
        try:
            endpoint.listen_on(wanted)
        except OSError as error:
            raise ModelConfigError(
                f"endpoint.port: cannot listen on 127.0.0.1:{wanted}: {error.strerror}; choose another"
            ) from error
        self._ports[wanted] = endpoint.name

    def _any_port(self, endpoint: Endpoint) -> None:
        ports = self._settings.ports
        if not ports:
            raise ModelConfigError(
                "endpoint.port: `auto` takes a port from the range that --endpoint-ports names, and it"
                " names none; give one such as 9100-9199"
            )
        # Start at a hash of the name, so that the model gets the same port after a restart.
        begin = zlib.crc32(endpoint.name.encode("utf-8", "surrogateescape")) % len(ports)
        for step in range(len(ports)):
            port = ports[(begin + step) % len(ports)]
            if port in self._ports:
                continue
            with suppress(OSError):
                endpoint.listen_on(port)
                self._ports[port] = endpoint.name
                return
        raise ModelConfigError(
            f"endpoint.port: no port from {ports[0]} to {ports[-1]} is free; name a wider range with"
            " --endpoint-ports"
        )

    def _close(self, name: str) -> None:
        self._errors.pop(name, None)
        endpoint = self._open.pop(name, None)
        if endpoint is None:
            return
        self._ports = {port: owner for port, owner in self._ports.items() if owner != name}
        endpoint.drain()
        if endpoint.connections:
            self._leaving.add(endpoint)
        self._publish(name)

    def _publish(self, name: str) -> None:
        self._loader.endpoint_changed(name, self._open.get(name), self.error(name))

    def _limit(self) -> int:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = self._settings.limit
        return room if hard == resource.RLIM_INFINITY else min(room, max(hard - _SPARE, hard // 2))

    def _make_room(self, more: int) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = min(len(self._open) + more, self._settings.limit) + _SPARE
        if soft == resource.RLIM_INFINITY or soft >= needed:
            return
        most = max(needed, _DESCRIPTORS)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

    def _warn(self) -> None:
        if not self._told:
            self._told = True
            _log.warning(
                "not every model has an endpoint; raise --endpoint-limit and the limit of open files",
                limit=self._limit(),
            )

    # The end

    async def refuse(self, stopping: asyncio.Event) -> None:
        """Accept no more connections or calls once the service is stopping."""
        await stopping.wait()
        self.drain()

    def drain(self) -> None:
        """Stop listening; each connection ends when its calls have ended."""
        if not self._refusing:
            self._refusing = True
            self._refusing_since = time.monotonic()
        for endpoint in self._open.values():
            endpoint.drain()

    async def drained(self, timeout: float) -> None:
        """Wait until the open calls have ended, at most `timeout` seconds from `drain`."""
        self.drain()
        timeout -= time.monotonic() - self._refusing_since
        with suppress(DeadlineError):
            await wait_until(lambda: not self.calls, timeout=timeout, what="the end of all calls")

    async def close(self) -> None:
        """End all connections at once."""
        for endpoint in (*self._open.values(), *self._leaving):
            endpoint.close()
        self._open.clear()
        self._leaving.clear()


def _port_of(address: str) -> int:
    return 0 if address.startswith("unix:") else int(address.rpartition(":")[2])


def _usable(entry: ModelEntry | None) -> bool:
    return entry is not None and not entry.error and not entry.config.disabled
