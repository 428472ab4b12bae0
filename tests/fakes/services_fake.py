"""Scripted services behind the protos, for tests of their clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.longrunning import operations_pb2_grpc
from grpc import aio

from corral.backend import backend_pb2, backend_pb2_grpc
from corral.gallery.v1 import gallery_pb2_grpc
from corral.loader.v1 import loader_pb2, loader_pb2_grpc
from corral.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from services.common import errors
from services.common.rpc.health import HealthServicer
from services.common.rpc.interceptors import ErrorInterceptor
from tests.fakes.gallery_fake import FakeGallery

STATE = loader_pb2.Model.State
CHANGE = loader_pb2.WatchModelsResponse


@dataclass
class FakeLoader(loader_pb2_grpc.LoaderServiceServicer, backend_pb2_grpc.BackendServicer):
    """A loader of scripted models; `replies` are a model's answers."""

    models: dict[str, loader_pb2.Model] = field(default_factory=dict)
    replies: Sequence[backend_pb2.Reply | float] = ()
    """Replies, and the pauses between them in seconds."""
    lines: list[loader_pb2.LogLine] = field(default_factory=list)
    load_seconds: float = 0.0
    load_error: errors.CorralError | None = None
    load_states: Sequence[Any] = (STATE.STATE_STARTING, STATE.STATE_LOADING)
    """The phases of a load, which takes `load_seconds` in all."""
    evicts: str = ""
    """The model that a waiting load evicts."""
    backends: list[loader_pb2.Backend] = field(default_factory=list)
    capacity: loader_pb2.GetCapacityResponse = field(default_factory=loader_pb2.GetCapacityResponse)
    plans: dict[str, loader_pb2.PlanEvictionResponse] = field(default_factory=dict)
    options: list[loader_pb2.EffectiveOption] = field(default_factory=list)
    settings: loader_pb2.Settings = field(default_factory=loader_pb2.Settings)
    sources: dict[str, str] = field(default_factory=dict)
    meanings: dict[str, str] = field(default_factory=dict)
    cut_calls: int = 0
    watchers: set[asyncio.Queue[str]] = field(default_factory=set)
    requests: list[Any] = field(default_factory=list)
    metadata: dict[str, str | bytes] = field(default_factory=dict)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    new_line: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, name: str, state: Any = STATE.STATE_UNLOADED, **more: Any) -> loader_pb2.Model:
        model = loader_pb2.Model(name=f"models/{name}", state=state, backend="llama-cpp", **more)
        if state == STATE.STATE_READY:
            model.instances.add(pid=4711, total_calls=3).ready_time.GetCurrentTime()
        self.models[name] = model
        self.changed(name)
        return model

    def changed(self, name: str) -> None:
        """Notify the watchers that a model changed or was removed."""
        for watcher in self.watchers:
            watcher.put_nowait(name)

    def become(self, name: str, state: Any, **more: Any) -> loader_pb2.Model:
        """Put a model into a state and notify the watchers."""
        model = self.models[name]
        model.MergeFrom(loader_pb2.Model(state=state, **more))
        model.state_time.GetCurrentTime()
        self.changed(name)
        return model

    def _find(self, name: str) -> loader_pb2.Model:
        name = name.removeprefix("models/")
        if name not in self.models:
            raise errors.ModelNotFoundError.of(name)
        return self.models[name]

    async def GetModel(self, request: Any, context: Any) -> Any:
        return loader_pb2.GetModelResponse(
            model=self._find(request.name), effective_options=self.options
        )

    async def ListModels(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        wanted = request.filter
        found = [model for _, model in sorted(self.models.items()) if _matches(wanted, model)]
        start = int(request.page_token or 0)
        # Pages of two, whatever size is requested: the client has to follow the tokens.
        page = found[start : start + min(2, request.page_size)]
        more = str(start + len(page)) if start + len(page) < len(found) else ""
        return loader_pb2.ListModelsResponse(
            models=page, next_page_token=more, total_size=len(found)
        )

    async def WatchModels(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        queue: asyncio.Queue[str] = asyncio.Queue()
        self.watchers.add(queue)
        seen = set()
        try:
            for name, model in sorted(self.models.items()):
                if _matches(request.filter, model):
                    seen.add(name)
                    yield CHANGE(change_type=CHANGE.CHANGE_TYPE_SNAPSHOT, model=model)
            yield CHANGE(change_type=CHANGE.CHANGE_TYPE_SNAPSHOT_END, resume_token="end")
            while True:
                name = await queue.get()
                found = self.models.get(name)
                if found is not None and _matches(request.filter, found):
                    seen.add(name)
                    yield CHANGE(change_type=CHANGE.CHANGE_TYPE_CHANGED, model=found)
                elif name in seen:
                    seen.discard(name)
                    gone = loader_pb2.Model(name=f"models/{name}")
                    yield CHANGE(change_type=CHANGE.CHANGE_TYPE_REMOVED, model=gone)
        finally:
            self.watchers.discard(queue)

    async def LoadModel(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        name = self._find(request.name).name[7:]
        if request.return_immediately:
            return loader_pb2.LoadModelResponse(model=self.become(name, self.load_states[0]))
        for state in self.load_states:
            self.become(name, state)
            await asyncio.sleep(self.load_seconds / len(self.load_states))
            if state == STATE.STATE_WAITING and self.evicts:
                reason = loader_pb2.Unload(
                    cause=loader_pb2.Unload.CAUSE_EVICTED,
                    message="idle the longest",
                    for_model=f"models/{name}",
                )
                self.become(self.evicts, STATE.STATE_UNLOADED, last_unload=reason)
        if self.load_error:
            self.become(name, STATE.STATE_FAILED)
            raise self.load_error
        memory = [
            loader_pb2.MemoryReservation(
                device="ram", bytes=2**30, basis=loader_pb2.MemoryReservation.BASIS_MEASURED
            )
        ]
        return loader_pb2.LoadModelResponse(model=self.add(name, STATE.STATE_READY, memory=memory))

    async def UnloadModel(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        model = self._find(request.name)
        if any(one.active_calls for one in model.instances) and not request.force:
            raise errors.ModelBusyError("it answers a call", resource=errors.Resource("model", "m"))
        return loader_pb2.UnloadModelResponse(model=self.add(model.name[7:]))

    async def ListBackends(self, request: Any, context: Any) -> Any:
        start = int(request.page_token or 0)
        page = self.backends[start : start + min(2, request.page_size)]
        more = str(start + len(page)) if start + len(page) < len(self.backends) else ""
        return loader_pb2.ListBackendsResponse(
            backends=page, next_page_token=more, total_size=len(self.backends)
        )

    async def PlanEviction(self, request: Any, context: Any) -> Any:
        name = self._find(request.name).name[7:]
        return self.plans.get(name, loader_pb2.PlanEvictionResponse(fits=True))

    async def PinModel(self, request: Any, context: Any) -> Any:
        model = self._find(request.name)
        model.pinned = request.pinned
        self.changed(model.name[7:])
        return loader_pb2.PinModelResponse(model=model)

    async def Drain(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        for name in list(self.models):
            self.add(name)
        return loader_pb2.DrainResponse(cut_calls=self.cut_calls)

    async def GetCapacity(self, request: Any, context: Any) -> Any:
        return self.capacity

    async def GetSettings(self, request: Any, context: Any) -> Any:
        return loader_pb2.GetSettingsResponse(
            settings=self.settings,
            sources=self.sources,
            descriptions=[
                loader_pb2.SettingDescription(name=name, description=text)
                for name, text in self.meanings.items()
            ],
        )

    async def UpdateSettings(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if request.settings.max_active_backends < 0:
            raise errors.InvalidRequestError.of("max_active_backends", "must not be negative")
        request.update_mask.MergeMessage(
            request.settings, self.settings, replace_message_field=True
        )
        self.sources |= dict.fromkeys(request.update_mask.paths, "runtime")
        return loader_pb2.UpdateSettingsResponse(settings=self.settings, sources=self.sources)

    async def StreamLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Send the matching lines; a gap in their numbers counts as missed lines."""
        self.requests.append(request)
        self._find(request.name)
        last = request.after_sequence if request.after_sequence <= self._newest() else 0
        history = [line for line in self.lines if line.sequence > last and _wants(request, line)]
        for line in history[-request.tail_lines :] if request.tail_lines else history:
            missed = self._missing(last, line.sequence) if last else 0
            last = line.sequence
            yield loader_pb2.StreamLogsResponse(line=line, missed_lines=missed)
        while request.follow:
            await self.new_line.wait()
            self.new_line.clear()
            for line in self.lines:
                if line.sequence > last and _wants(request, line):
                    missed = self._missing(last, line.sequence)
                    last = line.sequence
                    yield loader_pb2.StreamLogsResponse(line=line, missed_lines=missed)

    def _missing(self, after: int, before: int) -> int:
        there = {line.sequence for line in self.lines}
        return sum(number not in there for number in range(after + 1, before))

    def _newest(self) -> int:
        return self.lines[-1].sequence if self.lines else 0

    async def PredictStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata() or ())
        model = self.metadata.get("corral-model") or self.metadata.get("corral-model-bin", b"")
        name = model if isinstance(model, str) else model.decode()
        self._find(name or request.ModelIdentity)
        try:
            for reply in self.replies:
                if isinstance(reply, float):
                    await asyncio.sleep(reply)
                else:
                    yield reply
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


def _matches(wanted: loader_pb2.ModelFilter, model: loader_pb2.Model) -> bool:
    return (
        (not wanted.states or model.state in wanted.states)
        and wanted.name_contains.lower() in model.name.removeprefix("models/").lower()
        and wanted.backend in ("", model.backend)
    )


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
async def serving(
    *servicers: Any, address: str = "127.0.0.1:0", not_serving: Sequence[str] = ()
) -> AsyncIterator[str]:
    """Serve these on one port and yield the address; names in `not_serving` report NOT_SERVING."""
    server = aio.server(interceptors=(ErrorInterceptor(),))
    health = HealthServicer()
    health.add_to(server)
    health.set("", True, "test")
    health.set("models/m", True, "test")
    for name in not_serving:
        health.set(name, False, "test")
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


def _wants(request: loader_pb2.StreamLogsRequest, line: loader_pb2.LogLine) -> bool:
    streams = list(request.streams)
    return (not streams or line.stream in streams) and line.level >= request.minimum_level


def log_line(
    sequence: int, text: str, stream: str = "STDERR", level: str = "UNSPECIFIED", **more: Any
) -> loader_pb2.LogLine:
    line = loader_pb2.LogLine(
        sequence=sequence,
        text=text,
        stream=loader_pb2.LogLine.Stream.Value(f"STREAM_{stream}"),
        level=loader_pb2.LogLine.Level.Value(f"LEVEL_{level}"),
        **more,
    )
    line.time.GetCurrentTime()
    return line
