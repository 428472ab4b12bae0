"""Common steps of the loader's tests."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2
from services.common.errors import CorralError
from services.common.rpc.status import from_rpc_error

from .processes import command, processes_in
from .running import LoaderUnderTest

MODEL = (("corral-model", "m"),)
FOREVER = backend_pb2.PredictOptions(Prompt="on and on")
UNLOADED = loader_pb2.Model.STATE_UNLOADED
READY = loader_pb2.Model.STATE_READY
WAITING = loader_pb2.Model.STATE_WAITING


def named(name: str) -> tuple[tuple[str, str], ...]:
    return (("corral-model", name),)


def load(name: str = "m", **fields: Any) -> loader_pb2.LoadModelRequest:
    return loader_pb2.LoadModelRequest(name=f"models/{name}", **fields)


def unload(name: str = "m", *, force: bool = False) -> loader_pb2.UnloadModelRequest:
    return loader_pb2.UnloadModelRequest(name=f"models/{name}", force=force)


def prompt(text: str) -> backend_pb2.PredictOptions:
    return backend_pb2.PredictOptions(Prompt=text)


async def begin(loader: LoaderUnderTest, *names: str, **settings: Any) -> None:
    """Write models that share one backend, before the loader starts."""
    loader.add_backend("fake")
    for name in names:
        loader.add_model(name, "fake", **settings)


async def model(loader: LoaderUnderTest, name: str = "m") -> loader_pb2.Model:
    answer: loader_pb2.GetModelResponse = await loader.control.GetModel(
        loader_pb2.GetModelRequest(name=name)
    )
    return answer.model


async def states(loader: LoaderUnderTest) -> dict[str, int]:
    models = (await loader.control.ListModels(loader_pb2.ListModelsRequest())).models
    return {each.name.removeprefix("models/"): each.state for each in models}


async def refused(call: Awaitable[Any]) -> CorralError:
    """Return the error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return from_rpc_error(failed.value)


async def change(loader: LoaderUnderTest, **values: Any) -> loader_pb2.UpdateSettingsResponse:
    """Change settings of a running loader."""
    request = loader_pb2.UpdateSettingsRequest(
        settings=loader_pb2.Settings(**values), update_mask=FieldMask(paths=list(values))
    )
    answer: loader_pb2.UpdateSettingsResponse = await loader.control.UpdateSettings(request)
    return answer


def backends_running(loader: LoaderUnderTest) -> int:
    """Return the number of running scripted backends."""
    return sum("backend_fake" in command(p) for p in processes_in(loader.backends))
