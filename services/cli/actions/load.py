"""Loading models, and finding the one that is meant."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final, TypeVar

from corral.gallery.v1 import gallery_pb2
from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import messages, phrases, text
from services.cli.display.output import Output
from services.cli.failures import Failure
from services.cli.models import load_failure
from services.cli.tracking import model_changes
from services.common.errors import CorralError, DeadlineError, ModelNotFoundError

_T = TypeVar("_T")
_PAGE: Final = 1000
# Advice on a failure is a courtesy: it must not delay the failure much.
_ADVICE_TIMEOUT: Final = 2.0
_READY: Final = loader_pb2.Model.State.STATE_READY


async def load(clients: Clients, out: Output, name: str, *, now: bool, limit: float) -> None:
    """Load a model and tell its state, how long it took and the memory it has."""
    before = await get(clients, name)
    name = messages.bare(before.name)
    began = time.monotonic()
    if before.state != _READY:
        after = await ensure_loaded(clients, out, name, now=now, limit=limit)
    else:
        after = before
    view = messages.model(after)
    if out.as_json:
        out.emit({**view, "seconds": round(time.monotonic() - began, 3)})
        return
    backend = f" on {after.backend}" if after.backend else ""
    if before.state == _READY:
        out.line(f"{view['name']} is {view['state']}{backend} already")
    else:
        took = text.duration(time.monotonic() - began)
        held = phrases.memory(view["memory"])
        with_memory = f", with {held}" if held else ""
        out.line(f"{view['name']} is {view['state']}{backend}, after {took}{with_memory}")
    for instance in after.instances:
        if instance.load_message:
            out.note(instance.load_message)


async def begin(clients: Clients, out: Output, name: str, *, now: bool, limit: float) -> None:
    """Have a model loaded without waiting for it, and tell where it stands now."""
    name = messages.bare((await get(clients, name)).name)
    request = loader_pb2.LoadModelRequest(name=name, return_immediately=True, reset_backoff=now)
    try:
        answer = await within(
            clients.call("loader", clients.loader.LoadModel, request, timeout=limit),
            f"the loader did not answer within {text.duration(limit)}",
            f"see where the model stands with `corral status {name}`",
        )
    except CorralError as error:
        raise await load_failure.explained(clients, name, error) from error
    view = messages.model(answer.model)
    if out.as_json:
        out.emit(view)
        return
    out.line(f"{view['name']} is {view['state']}")
    if view["state"] != "ready":
        out.note(f"follow it with `corral status {view['name']} --watch`", "dim")


async def ensure_loaded(
    clients: Clients, out: Output, name: str, *, limit: float, now: bool = False
) -> loader_pb2.Model:
    """Load a model, showing what it does meanwhile, and return it when it is ready.

    With `now`, earlier failures do not make it wait. `name` is the model's own, as `get` returns it.
    """
    request = loader_pb2.LoadModelRequest(name=name, reset_backoff=now)
    try:
        async with model_changes.beside(clients, out, name, f"loading {name}"):
            answer = await within(
                clients.call("loader", clients.loader.LoadModel, request, timeout=limit),
                f"{name} was not ready within {text.duration(limit)}",
                f"the load goes on: see `corral status {name}` and `corral logs {name}`",
            )
    except CorralError as error:
        raise await load_failure.explained(clients, name, error) from error
    except asyncio.CancelledError:
        out.note(f"\nthe load of {name} goes on; stop it with `corral unload {name}`")
        raise
    return answer.model


async def get(clients: Clients, name: str) -> loader_pb2.Model:
    """Return a model, or say what to do if there is none of that name."""
    return (await get_whole(clients, name)).model


async def get_whole(clients: Clients, name: str) -> loader_pb2.GetModelResponse:
    """Return all that the loader says of a model, or say what to do if there is none of that name."""
    request = loader_pb2.GetModelRequest(name=name)
    try:
        return await clients.call("loader", clients.loader.GetModel, request)
    except ModelNotFoundError as error:
        if hint := await _advice(clients, messages.bare(name)):
            text = f"there is no model {messages.bare(name)!r} here"
            raise Failure(text, hint, reason=error.reason) from error
        raise


async def within(work: Awaitable[_T], message: str, hint: str) -> _T:
    """Return what `work` does, or fail with these words when its deadline ends."""
    try:
        return await work
    except DeadlineError:
        raise Failure(message, hint, reason="DEADLINE_EXCEEDED") from None


async def _advice(clients: Clients, name: str) -> str:
    """Return what somebody who asked for a missing model may have meant; empty if nothing is near."""
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
