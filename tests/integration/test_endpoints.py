from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc
from corral.loader.v1 import loader_pb2 as control
from tests.tools.running import LoaderUnderTest, eventually

FAKE = {"exec_": True}


@asynccontextmanager
async def client(address: str, *options: tuple[str, Any]) -> AsyncIterator[Any]:
    channel = grpc.aio.insecure_channel(
        address, options=[("grpc.use_local_subchannel_pool", 1), *options]
    )
    async with channel:
        yield backend_pb2_grpc.BackendStub(channel)


async def model(loader: LoaderUnderTest, name: str = "m") -> control.Model:
    answer = await loader.control.GetModel(control.GetModelRequest(name=f"models/{name}"))
    return getattr(answer, "model", answer)


async def endpoint(loader: LoaderUnderTest, name: str = "m") -> str:
    async def found() -> str:
        endpoints = (await model(loader, name)).endpoints
        return endpoints[0] if endpoints else ""

    return str(await eventually(found, what="the endpoint"))


async def test_a_call_loads_the_model(running: LoaderUnderTest) -> None:
    address = await endpoint(running)
    assert address == f"unix:{running.home}/run/models/m.sock"
    async with client(address) as stub:
        reply = await stub.Predict(pb.PredictOptions(Prompt="hello"), timeout=20)
        assert reply.message
        seen = await model(running)
        assert seen.state == control.Model.STATE_READY
        assert [(one.active_calls, one.total_calls) for one in seen.instances] == [(0, 1)]
