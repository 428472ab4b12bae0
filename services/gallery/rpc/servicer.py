"""The gallery's two gRPC services: check the request, call the domain, convert the result."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from grpc import aio

from corral.gallery.v1 import gallery_pb2 as pb
from corral.gallery.v1 import gallery_pb2_grpc as pb_grpc
from services.common.errors import InvalidRequestError, NotImplementedYetError
from services.common.names import MODELS, OPERATIONS, resource_id
from services.common.paging import Page, paginate
from services.gallery.index.entry import Entry
from services.gallery.index.galleries import Galleries
from services.gallery.index.search import find_entry, search_entries
from services.gallery.install.jobs import InstallJobs
from services.gallery.library.installed import InstalledModels
from services.gallery.operations.manager import OperationManager

from . import convert
from .operation_filter import parse_filter

SERVICE: Final = pb.DESCRIPTOR.services_by_name["GalleryService"].full_name
OPERATIONS_SERVICE: Final[str] = operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name
# The part of the client's deadline that is reserved for sending the response.
_ANSWER_TIME: Final = 0.2
_Context = aio.ServicerContext[Any, Any]


class GalleryServicer(pb_grpc.GalleryServiceServicer):
    """Lists what can be installed and what is installed, and installs models."""

    def __init__(
        self,
        galleries: Galleries,
        installed: InstalledModels,
        installs: InstallJobs,
        operations: OperationManager,
    ) -> None:
        """`installs` submits to `operations`."""
        self._galleries = galleries
        self._installed = installed
        self._installs = installs
        self._operations = operations

    async def ListModelEntries(
        self, request: pb.ListModelEntriesRequest, context: _Context
    ) -> pb.ListModelEntriesResponse:
        """List the entries of the galleries."""
        entries, missing = await self._galleries.entries()
        page, messages = await self._entries(entries, request, "")
        return pb.ListModelEntriesResponse(
            entries=messages,
            next_page_token=page.next_token,
            total_size=page.total,
            unreachable=convert.gallery_names(missing),
        )

    async def SearchModelEntries(
        self, request: pb.SearchModelEntriesRequest, context: _Context
    ) -> pb.SearchModelEntriesResponse:
        """List the entries with all words, the best match first."""
        entries, missing = await self._galleries.entries()
        found = search_entries(entries, request.query)
        page, messages = await self._entries(found, request, request.query)
        return pb.SearchModelEntriesResponse(
            entries=messages,
            next_page_token=page.next_token,
            total_size=page.total,
            unreachable=convert.gallery_names(missing),
        )

    async def GetModelEntry(
        self, request: pb.GetModelEntryRequest, context: _Context
    ) -> pb.GetModelEntryResponse:
        """Return one entry, with its files."""
        entries, _ = await self._galleries.entries()
        entry = find_entry(entries, request.name, field="name")
        installed = await self._installed.installed_names()
        return pb.GetModelEntryResponse(entry=convert.model_entry(entry, installed, whole=True))

    async def ListGalleries(
        self, request: pb.ListGalleriesRequest, context: _Context
    ) -> pb.ListGalleriesResponse:
        """List the galleries, without reading them again."""
        states = list(self._galleries.galleries)
        if request.kind == pb.GALLERY_KIND_BACKENDS:
            states = []
        numbered = [(f"{at:08d}", state) for at, state in enumerate(states)]
        page = paginate(
            numbered,
            size=request.page_size,
            token=request.page_token,
            key=lambda item: item[0],
            scope=("galleries", request.kind),
        )
        return pb.ListGalleriesResponse(
            galleries=[convert.gallery(state) for _, state in page.items],
            next_page_token=page.next_token,
            total_size=page.total,
        )

    async def InstallModel(self, request: pb.InstallModelRequest, context: _Context) -> Any:
        """Start an installation."""
        wanted = convert.install_request(request)
        request_id = convert.request_id(request.request_id)
        operation = await self._installs.submit(self._operations, wanted, request_id)
        return convert.operation(operation)

    async def ListInstalledModels(
        self, request: pb.ListInstalledModelsRequest, context: _Context
    ) -> pb.ListInstalledModelsResponse:
        """List the models folder."""
        policy = convert.policy(request.loose_file_policy)
        wanted = convert.model_filter(request.filter)
        models = await self._installed.models(policy, wanted)
        page = paginate(
            models,
            size=request.page_size,
            token=request.page_token,
            key=lambda model: model.name,
            scope=("models", policy.value, wanted),
        )
        return pb.ListInstalledModelsResponse(
            models=[convert.installed_model(model) for model in page.items],
            next_page_token=page.next_token,
            total_size=page.total,
        )

    async def CheckModelExists(
        self, request: pb.CheckModelExistsRequest, context: _Context
    ) -> pb.CheckModelExistsResponse:
        """Return whether there is a model of exactly this name."""
        exists = await self._installed.exists(
            resource_id(MODELS, request.name), convert.policy(request.loose_file_policy)
        )
        return pb.CheckModelExistsResponse(exists=exists)

    async def WatchOperation(
        self, request: pb.WatchOperationRequest, context: _Context
    ) -> AsyncIterator[pb.WatchOperationResponse]:
        """Stream an operation to its end."""
        async for operation in self._operations.watch(request.name):
            yield pb.WatchOperationResponse(operation=convert.operation(operation))

    async def _entries(
        self,
        entries: list[Entry],
        request: pb.ListModelEntriesRequest | pb.SearchModelEntriesRequest,
        query: str,
    ) -> tuple[Page[tuple[str, Entry]], list[pb.ModelEntry]]:
        """Filter and page entries; their order is the galleries' own, so it is numbered."""
        wanted = convert.entry_filter(request.filter)
        installed = await self._installed.installed_names()
        kept = [
            (f"{at:08d}", entry)
            for at, entry in enumerate(entries)
            if wanted.keeps(entry, installed=installed.has(entry.gallery, entry.name))
        ]
        page = paginate(
            kept,
            size=request.page_size,
            token=request.page_token,
            key=lambda item: item[0],
            scope=("entries", query, wanted),
        )
        return page, [convert.model_entry(entry, installed) for _, entry in page.items]

    # In the contract, but not implemented yet.

    async def ListBackendEntries(self, request: Any, context: _Context) -> Any:
        """Not yet: backends are folders that the loader finds by itself."""
        raise _not_yet("ListBackendEntries", "the loader lists the installed backends")

    async def SearchBackendEntries(self, request: Any, context: _Context) -> Any:
        """Not yet."""
        raise _not_yet("SearchBackendEntries", "the loader lists the installed backends")

    async def GetBackendEntry(self, request: Any, context: _Context) -> Any:
        """Not yet."""
        raise _not_yet("GetBackendEntry", "the loader lists the installed backends")

    async def AddGallery(self, request: Any, context: _Context) -> Any:
        """Not yet: galleries are a setting."""
        raise _not_yet("AddGallery", "start the service with --galleries")

    async def RemoveGallery(self, request: Any, context: _Context) -> Any:
        """Not yet: galleries are a setting."""
        raise _not_yet("RemoveGallery", "start the service without it in --galleries")

    async def DeleteModel(self, request: Any, context: _Context) -> Any:
        """Not yet."""
        raise _not_yet("DeleteModel", "unload it, then remove its files from the models folder")

    async def UpdateModel(self, request: Any, context: _Context) -> Any:
        """Not yet: installing again brings a model up to date."""
        raise _not_yet("UpdateModel", "InstallModel again fetches what has changed")

    async def ImportModel(self, request: Any, context: _Context) -> Any:
        """Not yet: a file and its configuration can be put into the folder."""
        raise _not_yet("ImportModel", "put the file and a YAML for it into the models folder")

    async def ApplyModels(self, request: Any, context: _Context) -> Any:
        """Not yet: each can be installed by itself."""
        raise _not_yet("ApplyModels", "call InstallModel for each")

    async def InstallBackend(self, request: Any, context: _Context) -> Any:
        """Not yet: a folder is all that the loader needs."""
        raise _not_yet("InstallBackend", "put the backend's folder into the backends folder")

    async def DeleteBackend(self, request: Any, context: _Context) -> Any:
        """Not yet."""
        raise _not_yet("DeleteBackend", "remove the backend's folder")

    async def UpdateBackend(self, request: Any, context: _Context) -> Any:
        """Not yet."""
        raise _not_yet("UpdateBackend", "replace the backend's folder")

    async def ImportBackend(self, request: Any, context: _Context) -> Any:
        """Not yet."""
        raise _not_yet("ImportBackend", "put the backend's folder into the backends folder")

    async def ApplyBackends(self, request: Any, context: _Context) -> Any:
        """Not yet."""
        raise _not_yet("ApplyBackends", "put the backends' folders into the backends folder")

    async def ListInstalledBackends(self, request: Any, context: _Context) -> Any:
        """Not yet: the loader lists them."""
        raise _not_yet("ListInstalledBackends", "the loader lists the installed backends")


class OperationsServicer(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]
    """The standard service google.longrunning.Operations."""

    def __init__(self, operations: OperationManager, *, wait_timeout: float) -> None:
        """`wait_timeout` is the default of WaitOperation in seconds."""
        self._operations = operations
        self._wait_timeout = wait_timeout

    async def ListOperations(self, request: Any, context: _Context) -> Any:
        """List operations, the newest first; `filter` may name done, kind, target and phase."""
        if request.name.strip("/") not in ("", OPERATIONS):
            raise InvalidRequestError.of("name", f"{request.name!r} is not {OPERATIONS!r}")
        wanted = parse_filter(request.filter)
        page = paginate(
            [item for item in self._operations.every() if wanted(item)],
            size=request.page_size,
            token=request.page_token,
            key=lambda item: item.order,
            scope=("operations", request.filter),
        )
        return convert.operations(page.items, page.next_token)

    async def GetOperation(self, request: Any, context: _Context) -> Any:
        """Return an operation as it is now."""
        return convert.operation(self._operations.get(request.name))

    async def WaitOperation(self, request: Any, context: _Context) -> Any:
        """Return an operation when it has ended, or as it is after the timeout."""
        timeout = self._wait_timeout
        left = context.time_remaining()
        if request.HasField("timeout"):
            timeout = max(request.timeout.ToMilliseconds() / 1000, 0.0)
        elif left is not None:
            timeout = left
        if left is not None:
            timeout = min(timeout, max(left - _ANSWER_TIME, 0.0))
        return convert.operation(await self._operations.wait(request.name, timeout))

    async def CancelOperation(self, request: Any, context: _Context) -> Any:
        """Ask an operation to stop."""
        await self._operations.cancel(request.name)
        return empty_pb2.Empty()

    async def DeleteOperation(self, request: Any, context: _Context) -> Any:
        """Remove an operation that has ended."""
        await self._operations.delete(request.name)
        return empty_pb2.Empty()


def _not_yet(method: str, instead: str) -> NotImplementedYetError:
    return NotImplementedYetError(
        f"{method} is not implemented yet; {instead}", metadata={"method": method}
    )
