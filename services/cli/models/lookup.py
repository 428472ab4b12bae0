"""Finding a model by its name, with advice if there is none."""

from __future__ import annotations

import difflib
from contextlib import suppress
from typing import Final

from corral.gallery.v1 import gallery_pb2
from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import messages
from services.cli.failures import Failure
from services.common.errors import CorralError, ModelNotFoundError

_PAGE: Final = 1000
# Advice on a failure is optional: it must not delay the failure much.
_ADVICE_TIMEOUT: Final = 2.0


async def get(clients: Clients, name: str) -> loader_pb2.Model:
    """Return a model; the failure for an unknown name includes advice."""
    return (await get_whole(clients, name)).model


async def get_whole(clients: Clients, name: str) -> loader_pb2.GetModelResponse:
    """Return the loader's whole answer about a model; the failure for an unknown name includes advice."""
    request = loader_pb2.GetModelRequest(name=name)
    try:
        return await clients.call("loader", clients.loader.GetModel, request)
    except ModelNotFoundError as error:
        if hint := await _advice(clients, messages.bare(name)):
            text = f"there is no model {messages.bare(name)!r} here"
            raise Failure(text, hint, reason=error.reason) from error
        raise


async def _advice(clients: Clients, name: str) -> str:
    """Return advice on a model that does not exist: a similar name, or how to install it; or empty."""
    with suppress(CorralError, Failure):
        models = await clients.call(
            "loader",
            clients.loader.ListModels,
            loader_pb2.ListModelsRequest(page_size=_PAGE),
            timeout=_ADVICE_TIMEOUT,
        )
        names = [messages.bare(model.name) for model in models.models]
        near = difflib.get_close_matches(name, names, n=1)
        near += [other for other in names if name.lower() in other.lower()]
        if near:
            return f"did you mean {near[0]}? list all with `corral models`"
    with suppress(CorralError, Failure):
        offered = await clients.call(
            "gallery",
            clients.gallery.GetModelEntry,
            gallery_pb2.GetModelEntryRequest(name=name),
            timeout=_ADVICE_TIMEOUT,
        )
        return f"install it first: `corral install {offered.entry.id}`"
    return ""
