"""The gRPC side of an instance: the control plane's calls, and the channel that the gateway uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from grpc import aio

from corral.backend import backend_pb2, backend_pb2_grpc
from services.common.addresses import parse_address
from services.common.errors import UnknownRemoteError
from services.common.rpc.channels import (
    FOREIGN_KEEPALIVE,
    NO_KEEPALIVE,
    call,
    open_channel,
)
from services.loader.instances.instance import LoadAnswer

from .load_request import message

_WELL = b"OK"

_KEPT_METHODS = 256
"""More than the contract will have; a client that invents method names must not fill memory."""

_WINDOW = 256 * 1024
"""Bytes that a backend may send ahead of the client, on each stream.

gRPC's own windows grow with what the connection can carry, to 8 MiB and more for each stream here: 16
clients that do not read were 150 to 250 MiB. Smaller than this, streams of 64 KiB messages cost more.
"""

_OPTIONS = {
    # Ports and sockets are reused by other backends; a shared pool would also share their back-off.
    "grpc.use_local_subchannel_pool": 1,
    # These probes are pings too, and Go's servers close a connection with more than one in 5 minutes.
    "grpc.http2.bdp_probe": 0,
    "grpc.http2.lookahead_bytes": _WINDOW,
    "grpc.http2.max_frame_size": _WINDOW,
}


def backend_options(address: str) -> dict[str, Any]:
    """Return the channel options for a backend, which may stay silent for the length of a call.

    A backend on this machine is not pinged: the loader sees its process end.
    """
    target = parse_address(address)
    return _OPTIONS | (NO_KEEPALIVE if target.is_local else FOREIGN_KEEPALIVE)


class GrpcConnection:
    """A channel to one backend."""

    def __init__(self, address: str, token: str, *, max_message_size: int) -> None:
        """Open the channel; it connects with the first call."""
        self.address = address
        self.metadata: tuple[tuple[str, str], ...] = (
            (("authorization", f"Bearer {token}"),) if token else ()
        )
        self.channel = open_channel(
            address, max_message_size=max_message_size, extra=backend_options(address)
        )
        self._stub: Any = backend_pb2_grpc.BackendStub(self.channel)
        self._methods: dict[tuple[str, str], Any] = {}

    def method(self, kind: str, path: str) -> Any:
        """Return the raw-bytes callable for a method; `kind` is, for example, `unary_stream`."""
        found = self._methods.get((kind, path))
        if found is None:
            found = getattr(self.channel, kind)(path)
            if len(self._methods) < _KEPT_METHODS:
                self._methods[kind, path] = found
        return found

    async def health(self, timeout: float) -> bool:
        """Whether the backend answers `OK`."""
        reply = await self._call(self._stub.Health, backend_pb2.HealthMessage(), timeout)
        return bool(reply.message == _WELL)

    async def load(self, options: Mapping[str, Any], timeout: float) -> LoadAnswer:
        """Make the backend load the model with these options."""
        result = await self._call(self._stub.LoadModel, message(options), timeout)
        return LoadAnswer(result.success, result.message)

    async def free(self, timeout: float) -> None:
        """Tell the backend to release the model; a backend without `Free` is not an error."""
        try:
            await self._call(self._stub.Free, backend_pb2.HealthMessage(), timeout)
        except UnknownRemoteError as error:
            if error.code != grpc.StatusCode.UNIMPLEMENTED.name:
                raise

    async def close(self) -> None:
        """Close the channel; running calls end."""
        await self.channel.close()

    async def _call(
        self, method: aio.UnaryUnaryMultiCallable[Any, Any], request: Any, timeout: float
    ) -> Any:
        return await call(method, request, timeout=timeout, metadata=self.metadata)
