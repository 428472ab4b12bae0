"""Channels over real connections: limits, retries, and servers that are down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from corral.backend import backend_pb2, backend_pb2_grpc
from services.common.config.settings import ServiceSettings
from services.common.errors import (
    ModelNotFoundError,
    NotImplementedYetError,
    ServiceUnreachableError,
    UnknownRemoteError,
)
from services.common.rpc import status
from services.common.rpc.channels import call, open_channel
from services.common.rpc.mounts import Mount
from services.common.rpc.server import serving

DEADLINE = 5.0


class Backend(backend_pb2_grpc.BackendServicer):
    """A generated servicer, for what the raw one cannot show."""

    def __init__(self) -> None:
        self.failures = 0
        self.calls = 0

    async def Health(self, request: Any, context: Any) -> backend_pb2.Reply:
        self.calls += 1
        if self.calls <= self.failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return backend_pb2.Reply(message=b"OK")

    async def Predict(self, request: Any, context: Any) -> backend_pb2.Reply:
        return backend_pb2.Reply(message=b"x" * request.Tokens)

    async def PredictStream(self, request: Any, context: Any) -> AsyncIterator[backend_pb2.Reply]:
        yield backend_pb2.Reply(message=b"1")
        raise ModelNotFoundError.of("phi")


@contextlib.asynccontextmanager
async def backend(
    listen: str = "127.0.0.1:0",
) -> AsyncIterator[tuple[Backend, str]]:
    servicer = Backend()
    mount = Mount(
        "backend.Backend",
        lambda server: backend_pb2_grpc.add_BackendServicer_to_server(servicer, server),
    )
    settings = ServiceSettings(listen=listen, grace=0.5)
    async with serving(name="test", settings=settings, mounts=[mount]) as server:
        yield servicer, server.address


async def test_generated_code_works_as_well(tmp_path: Path) -> None:
    async with (
        backend(f"unix:{tmp_path}/s") as (_, address),
        open_channel(address) as channel,
    ):
        stub = backend_pb2_grpc.BackendStub(channel)
        stream: Any = stub.PredictStream(backend_pb2.PredictOptions(), timeout=DEADLINE)
        got = []
        with pytest.raises(grpc.RpcError) as caught:
            while True:
                got.append((await stream.read()).message)
        assert got == [b"1"]
        assert isinstance(status.from_rpc_error(caught.value), ModelNotFoundError)
        with pytest.raises(NotImplementedYetError, match="/backend.Backend/LoadModel"):
            await call(stub.LoadModel, backend_pb2.ModelOptions(), timeout=DEADLINE)


async def test_messages_up_to_the_limit_and_not_beyond() -> None:
    async with backend() as (_, address), open_channel(address) as channel:
        stub = backend_pb2_grpc.BackendStub(channel)
        size = 20 * 1024 * 1024
        reply = await call(stub.Predict, backend_pb2.PredictOptions(Tokens=size), timeout=DEADLINE)
        assert len(reply.message) == size
        async with open_channel(address, max_message_size=1024) as narrow:
            with pytest.raises(UnknownRemoteError) as caught:
                await call(
                    backend_pb2_grpc.BackendStub(narrow).Predict,
                    backend_pb2.PredictOptions(Tokens=2048),
                    timeout=DEADLINE,
                )
        assert caught.value.code == "RESOURCE_EXHAUSTED"


async def test_only_the_calls_that_are_named_are_tried_again() -> None:
    async with backend() as (servicer, address):
        servicer.failures = 1
        async with open_channel(address, retry=["/backend.Backend/Health"]) as channel:
            stub = backend_pb2_grpc.BackendStub(channel)
            reply = await call(stub.Health, backend_pb2.HealthMessage(), timeout=DEADLINE)
            assert reply.message == b"OK"
            assert servicer.calls == 2
        servicer.calls = 0
        async with open_channel(address, retry=["/backend.Backend/Predict"]) as channel:
            stub = backend_pb2_grpc.BackendStub(channel)
            with pytest.raises(ServiceUnreachableError, match="not yet"):
                await call(stub.Health, backend_pb2.HealthMessage(), timeout=DEADLINE)


async def test_an_address_where_nothing_listens(tmp_path: Path) -> None:
    async with open_channel(f"unix:{tmp_path}/none") as channel:
        stub = backend_pb2_grpc.BackendStub(channel)
        with pytest.raises(ServiceUnreachableError):
            await call(stub.Health, backend_pb2.HealthMessage(), timeout=DEADLINE)


async def test_a_server_that_comes_late_is_found_at_once(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/late"
    loop = asyncio.get_running_loop()
    async with open_channel(address) as channel:
        stub = backend_pb2_grpc.BackendStub(channel)
        with pytest.raises(ServiceUnreachableError):
            await call(stub.Health, backend_pb2.HealthMessage(), timeout=DEADLINE)
        async with backend(address):
            began = loop.time()
            await call(
                stub.Health, backend_pb2.HealthMessage(), timeout=DEADLINE, wait_for_ready=True
            )
            # gRPC's default back-off would take a second.
            assert loop.time() - began < 0.8
