"""The monitor's client of the loader: its control plane, and the backends behind its gateway."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

from grpc import aio

from corral.backend import backend_pb2, backend_pb2_grpc
from corral.loader.v1 import loader_pb2, loader_pb2_grpc
from services.common.errors import DeadlineError, ServiceUnreachableError
from services.common.rpc.channels import call
from services.common.rpc.routing import model_metadata
from services.monitor.status import BackendAnswer, LoaderInfo

from . import convert

_PAGE: Final = 1000
_T = TypeVar("_T")


class LoaderClient:
    """Client of the loader. No method loads a model, or counts as use of one."""

    def __init__(
        self,
        channel: aio.Channel,
        address: str,
        *,
        loader_timeout: float,
        status_timeout: float,
        unload_timeout: float,
    ) -> None:
        """`channel` leads to the loader at `address`."""
        self._loader: loader_pb2_grpc.LoaderServiceAsyncStub = loader_pb2_grpc.LoaderServiceStub(
            channel
        )
        self._backend: backend_pb2_grpc.BackendAsyncStub = backend_pb2_grpc.BackendStub(channel)
        self._address = address
        self._loader_timeout = loader_timeout
        self._status_timeout = status_timeout
        self._unload_timeout = unload_timeout

    async def info(self, model: str) -> LoaderInfo:
        """Return what the loader reports about a model."""
        response = await self._named(
            call(
                self._loader.GetModel,
                loader_pb2.GetModelRequest(name=model),
                timeout=self._loader_timeout,
            )
        )
        return convert.loader_info(response.model)

    async def loaded(self) -> list[str]:
        """Return the names of the loaded models."""
        request = loader_pb2.ListModelsRequest(
            page_size=_PAGE, filter=loader_pb2.ModelFilter(states=convert.LOADED)
        )
        response = await self._named(
            call(self._loader.ListModels, request, timeout=self._loader_timeout)
        )
        return [convert.model_id(model.name) for model in response.models]

    async def ask(self, model: str) -> BackendAnswer:
        """Return the backend's answer to Status, asked through the gateway."""
        response = await call(
            self._backend.Status,
            backend_pb2.HealthMessage(),
            timeout=self._status_timeout,
            metadata=model_metadata(model),
        )
        return convert.backend_answer(response)

    async def unload(self, model: str, *, force: bool) -> None:
        """Unload a model; return after its process group is gone."""
        await self._named(
            call(
                self._loader.UnloadModel,
                loader_pb2.UnloadModelRequest(name=model, force=force),
                timeout=self._unload_timeout,
            )
        )

    async def _named(self, asked: Awaitable[_T]) -> _T:
        """Await a call to the loader; its errors name the loader and its address."""
        try:
            return await asked
        except (ServiceUnreachableError, DeadlineError) as error:
            # gRPC's message has the address only for some failures, and never the service.
            raise type(error)(
                f"the loader at {self._address} does not answer: {error}",
                metadata={**error.metadata, "service": "loader", "address": self._address},
                retry_after=error.retry_after,
            ) from error
