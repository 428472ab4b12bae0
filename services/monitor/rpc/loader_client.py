"""The loader, as the monitor sees it: its control plane, and the backends behind its gateway."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

from grpc import aio

from corral.backend import backend_pb2, backend_pb2_grpc
from corral.loader.v1 import loader_pb2, loader_pb2_grpc
from services.common.errors import DeadlineError, ServiceUnreachableError
from services.common.rpc.channels import call
from services.common.rpc.routing import model_metadata
from services.monitor.status import Answer, Known

from . import convert

# The gateway's key for the model that a call is for.
_PAGE: Final = 1000
_T = TypeVar("_T")


class LoaderClient:
    """Asks the loader. Nothing here loads a model or counts as use of one."""

    def __init__(
        self,
        channel: aio.Channel,
        address: str,
        *,
        loader_timeout: float,
        status_timeout: float,
        unload_timeout: float,
    ) -> None:
        """Use this channel, which leads to the loader at `address`."""
        self._loader: loader_pb2_grpc.LoaderServiceAsyncStub = loader_pb2_grpc.LoaderServiceStub(
            channel
        )
        self._backend: backend_pb2_grpc.BackendAsyncStub = backend_pb2_grpc.BackendStub(channel)
        self._address = address
        self._loader_timeout = loader_timeout
        self._status_timeout = status_timeout
        self._unload_timeout = unload_timeout

    async def known(self, model: str) -> Known:
        """Return what the loader knows of a model."""
        response = await self._told(
            call(
                self._loader.GetModel,
                loader_pb2.GetModelRequest(name=model),
                timeout=self._loader_timeout,
            )
        )
        return convert.known(response.model)

    async def loaded(self) -> list[str]:
        """Return the names of the models that a process or address holds."""
        request = loader_pb2.ListModelsRequest(
            page_size=_PAGE, filter=loader_pb2.ModelFilter(states=convert.LOADED)
        )
        response = await self._told(
            call(self._loader.ListModels, request, timeout=self._loader_timeout)
        )
        return [convert.model_id(model.name) for model in response.models]

    async def ask(self, model: str) -> Answer:
        """Return what the backend itself answers to Status, through the gateway."""
        response = await call(
            self._backend.Status,
            backend_pb2.HealthMessage(),
            timeout=self._status_timeout,
            metadata=model_metadata(model),
        )
        return convert.answer(response)

    async def unload(self, model: str, *, force: bool) -> None:
        """Unload a model; return after its process group is gone."""
        await self._told(
            call(
                self._loader.UnloadModel,
                loader_pb2.UnloadModelRequest(name=model, force=force),
                timeout=self._unload_timeout,
            )
        )

    async def _told(self, asked: Awaitable[_T]) -> _T:
        try:
            return await asked
        except (ServiceUnreachableError, DeadlineError) as error:
            # gRPC's own words name an address only for some failures, and never say whose it is.
            raise type(error)(
                f"the loader at {self._address} does not answer: {error}",
                metadata={**error.metadata, "service": "loader", "address": self._address},
                retry_after=error.retry_after,
            ) from error
