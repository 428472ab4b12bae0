"""The gRPC face of the loader: check, call the domain, convert."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from corral.loader.v1 import loader_pb2 as pb
from corral.loader.v1 import loader_pb2_grpc
from services.common.errors import CorralError, InvalidRequestError
from services.common.names import MODELS, resource_id, resource_name
from services.common.paging import paginate
from services.common.streams import until
from services.loader.direct.resolver import Resolutions
from services.loader.live_settings import LiveSettings
from services.loader.loader import Loader
from services.loader.options.resolver import OptionMaker
from services.loader.views.forecast import Forecast
from services.loader.views.models import Views
from services.loader.views.watch import ChangeKind, watch

from . import convert
from . import convert_scheduling as scheduling
from .effective_options import effective_options

_CHANGES = {
    ChangeKind.SNAPSHOT: pb.WatchModelsResponse.CHANGE_TYPE_SNAPSHOT,
    ChangeKind.SNAPSHOT_END: pb.WatchModelsResponse.CHANGE_TYPE_SNAPSHOT_END,
    ChangeKind.CHANGED: pb.WatchModelsResponse.CHANGE_TYPE_CHANGED,
    ChangeKind.REMOVED: pb.WatchModelsResponse.CHANGE_TYPE_REMOVED,
}


SERVICE = pb.DESCRIPTOR.services_by_name["LoaderService"].full_name


class LoaderServicer(loader_pb2_grpc.LoaderServiceServicer):
    """Serves `corral.loader.v1.LoaderService`."""

    def __init__(
        self,
        loader: Loader,
        views: Views,
        forecast: Forecast,
        settings: LiveSettings,
        options: OptionMaker,
        resolutions: Resolutions,
        stopping: asyncio.Event,
        *,
        drain_timeout: float,
        drained: Callable[[], None],
    ) -> None:
        """`stopping` ends the streams that nothing else ends; `drained` is called when a drain begins."""
        self._loader = loader
        self._views = views
        self._forecast = forecast
        self._settings = settings
        self._options = options
        self._resolutions = resolutions
        self._stopping = stopping
        self._drain_timeout = drain_timeout
        self._drained = drained

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.LoadModelResponse:
        """Load a model."""
        name = resource_id(MODELS, request.name)
        reset = request.reset_backoff
        if request.return_immediately:
            view = self._loader.begin_load(name, reset_backoff=reset)
        else:
            view = await self._loader.load(name, reset_backoff=reset)
        return pb.LoadModelResponse(model=convert.model(view))

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Any
    ) -> pb.UnloadModelResponse:
        """Unload a model."""
        name = resource_id(MODELS, request.name)
        view = await self._loader.unload(name, force=request.force)
        return pb.UnloadModelResponse(model=convert.model(view))

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """Return one model."""
        name = resource_id(MODELS, request.name)
        view = self._views.get(name)
        effective = await asyncio.to_thread(self._effective, name)
        return pb.GetModelResponse(model=convert.model(view), effective_options=effective)

    def _effective(self, name: str) -> list[pb.EffectiveOption]:
        try:
            load = self._forecast.next_load(name)
        except CorralError:
            return []  # the model's own state has the reason
        values = self._options.values(load.entry, load.backend)
        return effective_options(values, load.entry.config_file, load.lines)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        """List models."""
        condition = convert.model_filter(request.filter)
        page = paginate(
            self._views.select(condition),
            size=request.page_size,
            token=request.page_token,
            key=lambda view: view.name,
            scope=condition,
        )
        return pb.ListModelsResponse(
            models=[convert.model(view) for view in page.items],
            next_page_token=page.next_token,
            total_size=page.total,
        )

    async def WatchModels(
        self, request: pb.WatchModelsRequest, context: Any
    ) -> AsyncIterator[pb.WatchModelsResponse]:
        """Stream the state of models."""
        condition = convert.model_filter(request.filter)
        changes = watch(self._views, self._loader.changes, condition, request.resume_token)
        async for news in until(self._stopping, changes):
            yield pb.WatchModelsResponse(
                change_type=_CHANGES[news.said],
                model=convert.model(news.model)
                if news.model
                else pb.Model(name=resource_name(MODELS, news.name))
                if news.name
                else None,
                resume_token=news.token,
            )

    async def ListBackends(
        self, request: pb.ListBackendsRequest, context: Any
    ) -> pb.ListBackendsResponse:
        """List backends."""
        backends = self._loader.backends()
        # In the order of the folders, which the names do not follow: the position is the sort key.
        keyed = [(f"{place:08}", item) for place, item in enumerate(backends)]
        page = paginate(
            keyed, size=request.page_size, token=request.page_token, key=lambda pair: pair[0]
        )
        return pb.ListBackendsResponse(
            backends=[convert.backend(item) for _, item in page.items],
            next_page_token=page.next_token,
            total_size=page.total,
        )

    async def PlanEviction(
        self, request: pb.PlanEvictionRequest, context: Any
    ) -> pb.PlanEvictionResponse:
        """Explain an eviction."""
        plan, needs = await self._forecast.plan(resource_id(MODELS, request.name))
        return scheduling.plan(plan, needs)

    async def ResolveModel(
        self, request: pb.ResolveModelRequest, context: Any
    ) -> pb.ResolveModelResponse:
        """Lease an instance's address."""
        found = await self._resolutions.resolve(
            resource_id(MODELS, request.name),
            lease=request.lease,
            duration=convert.seconds("lease_duration", request.lease_duration)
            if request.HasField("lease_duration")
            else None,
        )
        return convert.resolution(found)

    async def HoldModel(
        self, request: pb.HoldModelRequest, context: Any
    ) -> AsyncIterator[pb.HoldModelResponse]:
        """Lease an instance's address for as long as the client stays."""
        holding = self._resolutions.hold(resource_id(MODELS, request.name))
        async for found in until(self._stopping, holding):
            yield pb.HoldModelResponse(resolution=convert.resolution(found))

    async def ReleaseLease(
        self, request: pb.ReleaseLeaseRequest, context: Any
    ) -> pb.ReleaseLeaseResponse:
        """Give a lease back."""
        if not request.lease:
            raise InvalidRequestError.of("lease", "is empty; send the one to give back")
        self._resolutions.release(request.lease)
        return pb.ReleaseLeaseResponse()

    async def StreamLogs(
        self, request: pb.StreamLogsRequest, context: Any
    ) -> AsyncIterator[pb.StreamLogsResponse]:
        """Stream what backends wrote."""
        name = resource_id(MODELS, request.name)
        news = self._loader.logs(name, convert.log_query(request))
        async for item in until(self._stopping, news):
            yield convert.log_news(item)

    async def PinModel(self, request: pb.PinModelRequest, context: Any) -> pb.PinModelResponse:
        """Pin or unpin a model."""
        view = self._loader.pin(resource_id(MODELS, request.name), request.pinned)
        return pb.PinModelResponse(model=convert.model(view))

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:
        """Drain the loader."""
        timeout = self._drain_timeout
        if request.HasField("timeout"):
            timeout = convert.seconds("timeout", request.timeout)
        self._drained()
        return pb.DrainResponse(cut_calls=await self._loader.drain(timeout))

    async def GetCapacity(
        self, request: pb.GetCapacityRequest, context: Any
    ) -> pb.GetCapacityResponse:
        """Return the capacity of the loader."""
        capacity = self._forecast.capacity()
        return pb.GetCapacityResponse(
            devices=[
                scheduling.device(room.device, room.reserved, room.budget)
                for room in capacity.rooms
            ],
            active_models=capacity.active_models,
            max_active_models=capacity.max_active_models,
            loads=capacity.loads,
            max_loads=capacity.max_loads,
            calls=capacity.calls,
            max_calls=capacity.max_calls,
            waiting=[
                scheduling.waiting(place, wish) for place, wish in enumerate(capacity.waiting, 1)
            ],
        )

    async def GetSettings(
        self, request: pb.GetSettingsRequest, context: Any
    ) -> pb.GetSettingsResponse:
        """Return the settings in force."""
        settings, sources = scheduling.settings(self._settings)
        return pb.GetSettingsResponse(
            settings=settings,
            sources=sources,
            descriptions=scheduling.descriptions(self._settings),
        )

    async def UpdateSettings(
        self, request: pb.UpdateSettingsRequest, context: Any
    ) -> pb.UpdateSettingsResponse:
        """Change settings."""
        self._settings.update(scheduling.changes(request.settings, request.update_mask))
        settings, sources = scheduling.settings(self._settings)
        return pb.UpdateSettingsResponse(settings=settings, sources=sources)
