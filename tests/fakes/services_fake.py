"""Scripted services behind the protos, for whoever is their client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import code_pb2
from grpc import aio

from corral.backend import backend_pb2, backend_pb2_grpc
from corral.gallery.v1 import gallery_pb2, gallery_pb2_grpc
from corral.loader.v1 import loader_pb2, loader_pb2_grpc
from corral.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from services.common import errors, status
from services.common.health import HealthServicer
from services.common.interceptors import ErrorInterceptor

STATE = loader_pb2.Model.State
PHASE = gallery_pb2.OperationMetadata.Phase


@dataclass
class FakeLoader(loader_pb2_grpc.LoaderServiceServicer, backend_pb2_grpc.BackendServicer):
    """A loader of scripted models; `replies` is what a model says."""

    models: dict[str, loader_pb2.Model] = field(default_factory=dict)
    replies: Sequence[backend_pb2.Reply | float] = ()
    """Replies, and pauses in seconds between them."""
    lines: list[loader_pb2.LogLine] = field(default_factory=list)
    load_seconds: float = 0.0
    load_error: errors.CorralError | None = None
    requests: list[Any] = field(default_factory=list)
    metadata: dict[str, str | bytes] = field(default_factory=dict)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    new_line: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, name: str, state: Any = STATE.STATE_UNLOADED, **more: Any) -> loader_pb2.Model:
        model = loader_pb2.Model(name=f"models/{name}", state=state, backend="llama-cpp", **more)
        if state == STATE.STATE_READY:
            model.instances.add(pid=4711, total_calls=3).ready_time.GetCurrentTime()
        self.models[name] = model
        return model

    def _find(self, name: str) -> loader_pb2.Model:
        name = name.removeprefix("models/")
        if name not in self.models:
            raise errors.ModelNotFoundError.of(name)
        return self.models[name]

    async def GetModel(self, request: Any, context: Any) -> Any:
        return loader_pb2.GetModelResponse(model=self._find(request.name))

    async def ListModels(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        wanted = request.filter
        found = [
            model
            for name, model in sorted(self.models.items())
            if (not wanted.states or model.state in wanted.states)
            and wanted.name_contains.lower() in name.lower()
            and wanted.backend in ("", model.backend)
        ]
        start = int(request.page_token or 0)
        # Pages of two, whatever is asked for: the client has to follow the tokens.
        page = found[start : start + min(2, request.page_size)]
        more = str(start + len(page)) if start + len(page) < len(found) else ""
        return loader_pb2.ListModelsResponse(
            models=page, next_page_token=more, total_size=len(found)
        )

    async def WatchModels(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for model in self.models.values():
            yield loader_pb2.WatchModelsResponse(
                change_type=loader_pb2.WatchModelsResponse.CHANGE_TYPE_SNAPSHOT, model=model
            )
        for state in (STATE.STATE_STARTING, STATE.STATE_LOADING):
            for model in self.models.values():
                changed = loader_pb2.Model(name=model.name, state=state)
                yield loader_pb2.WatchModelsResponse(
                    change_type=loader_pb2.WatchModelsResponse.CHANGE_TYPE_CHANGED, model=changed
                )
        await asyncio.Event().wait()

    async def LoadModel(self, request: Any, context: Any) -> Any:
        model = self._find(request.name)
        await asyncio.sleep(self.load_seconds)
        if self.load_error:
            raise self.load_error
        self.add(request.name.removeprefix("models/"), STATE.STATE_READY)
        return loader_pb2.LoadModelResponse(model=self.models[model.name[7:]])

    async def UnloadModel(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        model = self._find(request.name)
        if any(one.active_calls for one in model.instances) and not request.force:
            raise errors.ModelBusyError("it answers a call", resource=errors.Resource("model", "m"))
        return loader_pb2.UnloadModelResponse(model=self.add(model.name[7:]))

    async def StreamLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self._find(request.name)
        last = request.after_sequence
        history = [line for line in self.lines if line.sequence > last]
        for line in history[-request.tail_lines :] if request.tail_lines else history:
            last = line.sequence
            yield loader_pb2.StreamLogsResponse(line=line)
        while request.follow:
            await self.new_line.wait()
            self.new_line.clear()
            for line in self.lines:
                if line.sequence > last:
                    last = line.sequence
                    yield loader_pb2.StreamLogsResponse(line=line)

    async def PredictStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata() or ())
        binary = self.metadata.get("corral-model-bin", b"").decode()
        self._find(str(self.metadata.get("corral-model") or binary or request.ModelIdentity))
        try:
            for reply in self.replies:
                if isinstance(reply, float):
                    await asyncio.sleep(reply)
                else:
                    yield reply
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


@dataclass
class FakeGallery(gallery_pb2_grpc.GalleryServiceServicer, operations_pb2_grpc.OperationsServicer):
    """A gallery whose one installation runs through scripted steps."""

    entries: list[gallery_pb2.ModelEntry] = field(default_factory=list)
    installed: list[gallery_pb2.InstalledModel] = field(default_factory=list)
    step_seconds: float = 0.05
    steps: int = 4
    fails: errors.CorralError | None = None
    break_once: bool = False
    """The first watch is cut after its first message, as by a restart."""
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


class FakeMonitor(monitor_pb2_grpc.MonitorServiceServicer):
    async def GetStatus(self, request: Any, context: Any) -> Any:
        status_ = monitor_pb2.ModelStatus(
            model=request.name,
            state=monitor_pb2.ModelStatus.STATE_READY,
            source=monitor_pb2.ModelStatus.SOURCE_BACKEND,
            memory_bytes=200 * 1024 * 1024,
        )
        status_.process.pid = 4711
        status_.process.cpu_percent = 12.0
        status_.process.rss_bytes = 210 * 1024 * 1024
        return monitor_pb2.GetStatusResponse(status=status_)


@asynccontextmanager
async def serving(*servicers: Any, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve these on one port and yield the address."""
    server = aio.server(interceptors=(ErrorInterceptor(),))
    health = HealthServicer()
    health.add_to(server)
    health.set("", True, "test")
    for servicer in servicers:
        if isinstance(servicer, FakeLoader):
            loader_pb2_grpc.add_LoaderServiceServicer_to_server(servicer, server)
            backend_pb2_grpc.add_BackendServicer_to_server(servicer, server)
        elif isinstance(servicer, FakeGallery):
            gallery_pb2_grpc.add_GalleryServiceServicer_to_server(servicer, server)
            operations_pb2_grpc.add_OperationsServicer_to_server(servicer, server)
        elif isinstance(servicer, FakeMonitor):
            monitor_pb2_grpc.add_MonitorServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield address.rpartition(":")[0] + f":{port}"
    finally:
        health.shut_down()
        await server.stop(0)


def reply(text: str | bytes, **more: Any) -> backend_pb2.Reply:
    return backend_pb2.Reply(message=text.encode() if isinstance(text, str) else text, **more)


def log_line(sequence: int, text: str, stream: str = "STDERR") -> loader_pb2.LogLine:
    line = loader_pb2.LogLine(
        sequence=sequence, text=text, stream=loader_pb2.LogLine.Stream.Value(f"STREAM_{stream}")
    )
    line.time.GetCurrentTime()
    return line
