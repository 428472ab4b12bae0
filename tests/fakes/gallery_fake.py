"""A scripted gallery behind its protos, for tests of its clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import code_pb2

from corral.gallery.v1 import gallery_pb2, gallery_pb2_grpc
from services.common import errors
from services.common.rpc import status

PHASE = gallery_pb2.OperationMetadata.Phase


@dataclass
class FakeGallery(
    gallery_pb2_grpc.GalleryServiceServicer,
    operations_pb2_grpc.OperationsServicer,  # type: ignore[misc]  # it has no stubs
):
    """A gallery whose single installation runs through scripted steps."""

    entries: list[gallery_pb2.ModelEntry] = field(default_factory=list)
    installed: list[gallery_pb2.InstalledModel] = field(default_factory=list)
    step_seconds: float = 0.05
    steps: int = 4
    fails: errors.CorralError | None = None
    break_once: bool = False
    """Whether the first watch is cut after its first message, as by a restart."""
    requests: list[Any] = field(default_factory=list)
    operation: operations_pb2.Operation | None = None
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    watched: asyncio.Event = field(default_factory=asyncio.Event)

    async def ListModelEntries(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        start = int(request.page_token or 0)
        page = self.entries[start : start + min(2, request.page_size)]
        more = str(start + len(page)) if start + len(page) < len(self.entries) else ""
        return gallery_pb2.ListModelEntriesResponse(
            entries=page, next_page_token=more, total_size=len(self.entries)
        )

    async def SearchModelEntries(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        found = [entry for entry in self.entries if request.query in entry.id]
        return gallery_pb2.SearchModelEntriesResponse(
            entries=found, total_size=len(found), unreachable=["galleries/far-away"]
        )

    async def GetModelEntry(self, request: Any, context: Any) -> Any:
        for entry in self.entries:
            if entry.id == request.name:
                return gallery_pb2.GetModelEntryResponse(entry=entry)
        raise errors.EntryNotFoundError(f"no gallery offers {request.name!r}")

    async def ListInstalledModels(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return gallery_pb2.ListInstalledModelsResponse(
            models=self.installed, total_size=len(self.installed)
        )

    async def InstallModel(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if request.entry not in [entry.id for entry in self.entries]:
            raise errors.EntryNotFoundError(f"no gallery offers {request.entry!r}")
        self.operation = self._state(0, request.model_id or request.entry)
        return self.operation

    async def WatchOperation(self, request: Any, context: Any) -> AsyncIterator[Any]:
        operation = self._known(request.name)
        target = views_target(operation)
        step = 0
        while not operation.done:
            yield gallery_pb2.WatchOperationResponse(operation=operation)
            self.watched.set()
            if self.break_once:
                self.break_once = False
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            try:
                await asyncio.wait_for(self.cancel.wait(), self.step_seconds)
            except TimeoutError:
                step += 1
            operation = self.operation = self._state(step, target)
        yield gallery_pb2.WatchOperationResponse(operation=operation)

    async def GetOperation(self, request: Any, context: Any) -> Any:
        return self._known(request.name)

    async def ListOperations(self, request: Any, context: Any) -> Any:
        return operations_pb2.ListOperationsResponse(
            operations=[self.operation] if self.operation else []
        )

    async def CancelOperation(self, request: Any, context: Any) -> Any:
        from google.protobuf import empty_pb2

        self._known(request.name)
        self.cancel.set()
        return empty_pb2.Empty()

    def _known(self, name: str) -> operations_pb2.Operation:
        if self.operation is None or self.operation.name != name:
            raise errors.OperationNotFoundError(f"no operation {name!r}")
        return self.operation

    def _state(self, step: int, target: str) -> operations_pb2.Operation:
        cancelled = self.cancel.is_set()
        done = cancelled or step >= self.steps
        phase = PHASE.PHASE_DOWNLOADING
        if done:
            phase = PHASE.PHASE_CANCELLED if cancelled else PHASE.PHASE_DONE
        meta = gallery_pb2.OperationMetadata(
            kind=gallery_pb2.OperationMetadata.KIND_INSTALL_MODEL,
            target=f"models/{target}",
            phase=phase,
            file="" if done else "weights/model.gguf",
            bytes_done=100 * 1024 * 1024 * step // self.steps,
            bytes_total=100 * 1024 * 1024,
            percent=100 * step / self.steps,
            bytes_per_second=0 if done else 50e6,
        )
        meta.create_time.GetCurrentTime()
        operation = operations_pb2.Operation(name="operations/op1", done=done)
        operation.metadata.Pack(meta)
        if cancelled:
            operation.error.code = code_pb2.CANCELLED
            operation.error.message = "cancelled"
        elif done and self.fails:
            operation.error.CopyFrom(status.to_status(self.fails))
        elif done:
            model = gallery_pb2.InstalledModel(name=f"models/{target}", size_bytes=104857600)
            operation.response.Pack(
                gallery_pb2.InstallModelResult(model=model, bytes_fetched=104857600)
            )
        return operation


def views_target(operation: operations_pb2.Operation) -> str:
    meta = gallery_pb2.OperationMetadata()
    operation.metadata.Unpack(meta)
    return meta.target.removeprefix("models/")
