"""Completion after TAB: names from the running services, or nothing if they do not answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

import typer

from services.cli.display.text import clip

if TYPE_CHECKING:
    from services.cli.client.clients import Clients

Offers = list[tuple[str, str]]

# A shell that hangs on TAB is worse than one that offers nothing.
_TIMEOUT: Final = 1.5
_MOST: Final = 200
_HELP_WIDTH: Final = 60


def models(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer the loader's models."""

    async def ask(clients: Clients) -> Offers:
        from corral.loader.v1 import loader_pb2

        request = loader_pb2.ListModelsRequest(
            page_size=_MOST, filter=loader_pb2.ModelFilter(name_contains=incomplete)
        )
        answer = await clients.call("loader", clients.loader.ListModels, request, timeout=_TIMEOUT)
        names = loader_pb2.Model.State
        return [
            (
                model.name.removeprefix("models/"),
                names.Name(model.state).removeprefix("STATE_").lower(),
            )
            for model in answer.models
        ]

    return _offers(ctx, ask)


def loaded(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer the models that are loaded or being loaded."""
    return [offer for offer in models(ctx, incomplete) if offer[1] != "unloaded"]


def pinned(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer the models that are pinned."""

    async def ask(clients: Clients) -> Offers:
        from corral.loader.v1 import loader_pb2

        request = loader_pb2.ListModelsRequest(
            page_size=_MOST, filter=loader_pb2.ModelFilter(name_contains=incomplete)
        )
        answer = await clients.call("loader", clients.loader.ListModels, request, timeout=_TIMEOUT)
        return [
            (model.name.removeprefix("models/"), "pinned")
            for model in answer.models
            if model.pinned
        ]

    return _offers(ctx, ask)


def backends(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer the loader's backends."""

    async def ask(clients: Clients) -> Offers:
        from corral.loader.v1 import loader_pb2

        request = loader_pb2.ListBackendsRequest(page_size=_MOST)
        answer = await clients.call(
            "loader", clients.loader.ListBackends, request, timeout=_TIMEOUT
        )
        return [
            (one.name.removeprefix("backends/"), "cannot be used" if one.error else "usable")
            for one in answer.backends
            if one.name.removeprefix("backends/").startswith(incomplete)
        ]

    return _offers(ctx, ask)


def settings(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer the names of settings, as the beginning of `name=value`, with what they mean."""

    async def ask(clients: Clients) -> Offers:
        from corral.loader.v1 import loader_pb2

        answer = await clients.call(
            "loader",
            clients.loader.GetSettings,
            loader_pb2.GetSettingsRequest(),
            timeout=_TIMEOUT,
        )
        meanings = {one.name: one.description for one in answer.descriptions}
        return [
            (f"{field.name}=", clip(meanings.get(field.name, ""), _HELP_WIDTH))
            for field in answer.settings.DESCRIPTOR.fields
            if field.name.startswith(incomplete)
        ]

    return _offers(ctx, ask)


def entries(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer the entries of the galleries."""

    async def ask(clients: Clients) -> Offers:
        from corral.gallery.v1 import gallery_pb2

        found: Offers = []
        token = ""
        while True:
            answer = await clients.call(
                "gallery",
                clients.gallery.ListModelEntries,
                gallery_pb2.ListModelEntriesRequest(page_size=1000, page_token=token),
                timeout=_TIMEOUT,
            )
            for entry in answer.entries:
                if entry.id.startswith(incomplete):
                    found.append((entry.id, clip(entry.description, _HELP_WIDTH)))
            token = answer.next_page_token
            if not token or len(found) >= _MOST:
                return found[:_MOST]

    return _offers(ctx, ask)


def operations(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer the gallery's operations."""

    async def ask(clients: Clients) -> Offers:
        from google.longrunning import operations_pb2

        request = operations_pb2.ListOperationsRequest(name="operations", page_size=_MOST)
        answer = await clients.call(
            "gallery", clients.operations.ListOperations, request, timeout=_TIMEOUT
        )
        return [
            (item.name.removeprefix("operations/"), "ended" if item.done else "running")
            for item in answer.operations
        ]

    return _offers(ctx, ask)


def _offers(ctx: typer.Context, ask: Callable[[Clients], Awaitable[Offers]]) -> Offers:
    import asyncio

    async def main() -> Offers:
        from services.cli.client.addresses import resolve
        from services.cli.client.clients import Clients
        from services.common.config.fields import corral_home

        async with Clients(resolve(_given(ctx.params), corral_home())) as clients:
            async with asyncio.timeout(_TIMEOUT):
                return await ask(clients)

    try:
        return asyncio.run(main())
    except Exception:  # noqa: BLE001 - an error message would break the line that is being typed
        return []


def _given(params: Mapping[str, object]) -> dict[str, str | None]:
    return {
        name: value
        for name in ("loader", "gallery", "monitor", "metrics")
        if isinstance(value := params.get(name), str)
    }
