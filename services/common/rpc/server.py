"""The gRPC server of every service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from grpc import aio
from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from services.common.addresses import Address, parse_address
from services.common.config.settings import ServiceSettings
from services.common.process import listen_address
from services.common.process.listen_address import StartError

from .call_records import AccessLog, CallAccounts, CallObserver
from .health import SERVICE as HEALTH
from .health import HealthServicer
from .interceptor_base import InterceptedServer
from .interceptors import CallInterceptor, ErrorInterceptor
from .mounts import (
    OVERSIZE,
    AccountingMount,
    AnyMount,
    GenericMount,
    Mount,
    Observe,
    server_options,
)

_CHANNELZ: Final[str] = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name


class Server:
    """A gRPC server with interceptors, health, channelz and reflection. `stop` can be called repeatedly."""

    def __init__(
        self,
        *,
        name: str,
        settings: ServiceSettings,
        health: HealthServicer,
        observers: Sequence[CallObserver] = (),
    ) -> None:
        """Nothing is opened before `start`."""
        self._name = name
        self._settings = settings
        self._health = health
        self._observers = tuple(observers)
        self._server: aio.Server | None = None
        self._bound = Address()
        self._socket: tuple[int, int] | None = None

    @property
    def address(self) -> str:
        """The address it serves on, with the actual port."""
        return str(self._bound)

    async def start(self, mounts: Sequence[AnyMount]) -> None:
        """Bind the address, serve, and report it in the health service. Raises StartError."""
        observers = [m.observer for m in mounts if isinstance(m, Observe)]
        accounts = CallAccounts(self._name, (AccessLog(), *self._observers, *observers))
        large = any(isinstance(mount, AccountingMount) for mount in mounts)
        limit = self._settings.max_message_size
        server = aio.server(options=server_options(limit, oversize=OVERSIZE if large else 1))
        # Outermost first: the recorded status is the one sent to the client.
        around = (
            CallInterceptor(accounts, stopping=self._health.stopping),
            ErrorInterceptor(max_message_size=limit if large else None),
        )
        intercepted: Any = InterceptedServer(server, around)
        names: list[str] = []
        for mount in mounts:
            if isinstance(mount, Mount):
                mount.add(intercepted)
                names.append(mount.service)
            elif isinstance(mount, GenericMount):
                intercepted.add_generic_rpc_handlers((mount.handler,))
                names += mount.names
            elif isinstance(mount, AccountingMount):
                server.add_generic_rpc_handlers((mount.make(accounts),))
                names += mount.names
        self._health.add_to(intercepted)
        # Named explicitly: the packages' own functions recognise an asyncio server by its class.
        channelz_pb2_grpc.add_ChannelzServicer_to_server(
            channelz.aio.ChannelzServicer(), intercepted
        )
        reflected = (*names, HEALTH, _CHANNELZ, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(reflected), intercepted
        )
        self._bind(server)
        await server.start()
        self._server = server
        self._socket = listen_address.identity(self._bound)
        for name in ("", *names):
            if name not in self._health.statuses:
                self._health.set(name, True, "started")

    async def stop(self, grace: float | None) -> None:
        """Refuse new calls, let running ones continue for `grace` seconds, then cancel them.

        A second call with a shorter grace shortens the first one's.
        """
        self._health.shut_down()
        if self._server is not None:
            await self._server.stop(grace)
            listen_address.release(self._bound, self._socket)

    async def ended(self) -> None:
        """Wait until the server no longer serves."""
        if self._server is not None:
            await self._server.wait_for_termination()

    def _bind(self, server: aio.Server) -> None:
        wanted = parse_address(self._settings.listen, field="listen", listen=True)
        listen_address.prepare(wanted)
        try:
            port = server.add_insecure_port(str(wanted))
        except RuntimeError as error:
            raise StartError(f"cannot listen on {wanted}: {error}") from error
        self._bound = wanted if wanted.is_unix else Address(host=wanted.host, port=port)


@asynccontextmanager
async def serving(
    *,
    name: str,
    settings: ServiceSettings,
    mounts: Sequence[AnyMount],
    health: HealthServicer | None = None,
    observers: Sequence[CallObserver] = (),
) -> AsyncIterator[Server]:
    """Serve within the running loop, without signals or a ready line: for tests and for embedding."""
    server = Server(
        name=name, settings=settings, health=health or HealthServicer(), observers=observers
    )
    await server.start(mounts)
    try:
        yield server
    finally:
        await server.stop(settings.grace)
