"""MonitorService over gRPC: check, call the domain, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from corral.monitor.v1 import monitor_pb2 as pb
from corral.monitor.v1 import monitor_pb2_grpc
from services.common.errors import NotImplementedYetError
from services.monitor.status import Statuses

from . import convert

SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["MonitorService"].full_name


class MonitorServicer(monitor_pb2_grpc.MonitorServiceServicer):
    """Reports what loaded models do and use."""

    def __init__(self, statuses: Statuses) -> None:
        """`statuses` answers the requests."""
        self._statuses = statuses

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """Return the status of a loaded model."""
        status = await self._statuses.get(convert.model_id(request.name))
        return pb.GetStatusResponse(status=convert.status(status))

    async def WatchStatus(
        self, request: pb.WatchStatusRequest, context: Any
    ) -> AsyncIterator[pb.WatchStatusResponse]:
        """Not implemented yet."""
        raise NotImplementedYetError.of("WatchStatus")
        yield pb.WatchStatusResponse()

    async def SampleProcess(
        self, request: pb.SampleProcessRequest, context: Any
    ) -> pb.SampleProcessResponse:
        """Return a sample of a loaded model's process tree."""
        sample = await self._statuses.sample(convert.model_id(request.name))
        return pb.SampleProcessResponse(sample=convert.sample(sample))

    async def ShutdownModel(
        self, request: pb.ShutdownModelRequest, context: Any
    ) -> pb.ShutdownModelResponse:
        """Unload a model and wait until its process group is gone."""
        await self._statuses.shut_down(convert.model_id(request.name), force=request.force)
        return pb.ShutdownModelResponse()

    async def GetSystem(self, request: pb.GetSystemRequest, context: Any) -> pb.GetSystemResponse:
        """Not implemented yet."""
        raise NotImplementedYetError.of("GetSystem")

    async def WatchSystem(
        self, request: pb.WatchSystemRequest, context: Any
    ) -> AsyncIterator[pb.WatchSystemResponse]:
        """Not implemented yet."""
        raise NotImplementedYetError.of("WatchSystem")
        yield pb.WatchSystemResponse()
