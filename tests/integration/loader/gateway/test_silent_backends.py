"""Silent calls that outlast the pings gRPC's default servers tolerate, in three languages.

A default server treats pings more often than every 5 minutes as an attack and closes the
connection with "Too many pings". To see that in seconds, the test shortens the interval of our
pings, not the server's limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from corral.backend import backend_pb2, backend_pb2_grpc
from services.common.errors import CorralError
from services.common.rpc import channels
from services.common.rpc.channels import call, open_channel
from services.loader.gateway.backend_channel import GrpcConnection
from tests.tools.foreign_servers import silent_go, silent_js

PREDICT = "/backend.Backend/Predict"

PING_SECONDS = 1.0
"""The shortest interval that gRPC honours."""
SILENCE = 6.0
"""Seconds: enough for more pings than a default server tolerates, which is three."""

pytestmark = pytest.mark.timeout(300)  # Building the Go server takes a while the first time.


class Silent(backend_pb2_grpc.BackendServicer):
    """Answers after a while, like a backend that reads a prompt or loads a model."""

    async def Predict(self, request: Any, context: Any) -> backend_pb2.Reply:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), SILENCE)
        return backend_pb2.Reply(message=b"at last")

    async def LoadModel(self, request: Any, context: Any) -> backend_pb2.Result:
        await self.Predict(request, context)
        return backend_pb2.Result(success=True, message="loaded")


@contextlib.asynccontextmanager
async def silent_grpcio(listen: str) -> AsyncIterator[str]:
    server = aio.server()
    backend_pb2_grpc.add_BackendServicer_to_server(Silent(), server)
    port = server.add_insecure_port(listen)
    await server.start()
    yield listen if listen.startswith("unix:") else f"127.0.0.1:{port}"
    await server.stop(None)


@contextlib.asynccontextmanager
async def connection(address: str) -> AsyncIterator[GrpcConnection]:
    made = GrpcConnection(
        address,
        "",
        max_message_size=2**20,
    )
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(autouse=True)
def frequent_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "KEEPALIVE_SECONDS", PING_SECONDS)


async def predict(backend: GrpcConnection) -> bytes:
    reply = await asyncio.wait_for(backend.method("unary_unary", PREDICT)(b""), 30)
    return backend_pb2.Reply.FromString(reply).message


async def pinged(address: str) -> CorralError | None:
    """Make the same call on a channel that pings, as channels between our own services do."""
    async with open_channel(address) as channel:
        stub: Any = backend_pb2_grpc.BackendStub(channel)
        try:
            await call(stub.Predict, backend_pb2.PredictOptions(), timeout=30)
        except CorralError as error:
            return error
    return None


@pytest.mark.parametrize("kind", ["port", "unix"])
async def test_a_silent_call_and_a_silent_load_end_well_with_a_default_grpcio_server(
    kind: str, tmp_path: Path
) -> None:
    listen = "127.0.0.1:0" if kind == "port" else f"unix:{tmp_path / 's'}"
    async with silent_grpcio(listen) as address, connection(address) as backend:
        answer, load, error = await asyncio.gather(
            predict(backend),
            backend.load({}, timeout=30),
            pinged(address),
        )
    assert (answer, load.success) == (b"at last", True)
    assert error is not None and "too many pings" in str(error).lower(), "pings do no harm any more"


async def test_a_silent_call_ends_well_with_a_default_grpc_go_server() -> None:
    async with silent_go(SILENCE) as address, connection(address) as backend:
        answer, error = await asyncio.gather(predict(backend), pinged(address))
    assert answer == b"at last"
    assert error is not None, "pings do no harm any more"


async def test_a_silent_call_ends_well_with_a_default_grpc_js_server() -> None:
    async with silent_js(SILENCE) as address, connection(address) as backend:
        assert await predict(backend) == b"at last"
