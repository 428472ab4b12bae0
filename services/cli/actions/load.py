"""Loading and unloading models, and watching them do it."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

from corral.gallery.v1 import gallery_pb2
from corral.loader.v1 import loader_pb2
from services.cli import text, views
from services.cli.clients import Clients
from services.cli.failures import Failure
from services.cli.output import Output
from services.cli.progress import Waiting, spinner
from services.common.errors import CorralError, DeadlineError, ModelNotFoundError

_T = TypeVar("_T")
_PAGE: Final = 1000
# Advice on a failure is a courtesy: it must not delay the failure much.
_ADVICE_TIMEOUT: Final = 2.0
_STATE = loader_pb2.Model.State
_WORDS: Final = {
    _STATE.STATE_UNLOADED: "is not loaded",
    _STATE.STATE_STARTING: "starting its backend",
    _STATE.STATE_LOADING: "loading",
    _STATE.STATE_READY: "ready",
    _STATE.STATE_DRAINING: "waiting for running calls",
    _STATE.STATE_STOPPING: "stopping",
    _STATE.STATE_BACKOFF: "failed a moment ago",
    _STATE.STATE_FAILED: "failed",
}


async def load(clients: Clients, out: Output, name: str, *, limit: float) -> None:
    """Load a model and tell its state and how long it took."""
    before = await get(clients, name)
    began = time.monotonic()
    if before.state != _STATE.STATE_READY:
        after = await ensure_loaded(clients, out, name, limit=limit)
    else:
        after = before
    if out.as_json:
        out.emit({**views.model(after), "seconds": round(time.monotonic() - began, 3)})
        return
    backend = f" on {after.backend}" if after.backend else ""
    if before.state == _STATE.STATE_READY:
        out.line(f"{views.bare(after.name)} is {views.state_of(after)}{backend} already")
    else:
        took = text.duration(time.monotonic() - began)
        out.line(f"{views.bare(after.name)} is {views.state_of(after)}{backend}, after {took}")
    for instance in after.instances:
        if instance.load_message:
            out.note(instance.load_message)


async def unload(clients: Clients, out: Output, name: str, *, force: bool, limit: float) -> None:
    """Unload a model and tell how long it took."""
    before = await get(clients, name)
    began = time.monotonic()
    request = loader_pb2.UnloadModelRequest(name=name, force=force)
    async with _watching(clients, out, name, f"unloading {name}"):
        answer = await _within(
            clients.call("loader", clients.loader.UnloadModel, request, timeout=limit),
            f"{name} was not unloaded within {text.duration(limit)}",
            f"it goes on: see `corral status {name}`, or cut running calls with --force",
        )
    took = time.monotonic() - began
    if out.as_json:
        out.emit({**views.model(answer.model), "seconds": round(took, 3)})
    elif before.state == _STATE.STATE_UNLOADED:
        out.line(f"{views.bare(answer.model.name)} was not loaded")
    else:
        out.line(f"{views.bare(answer.model.name)} is unloaded, after {text.duration(took)}")


async def ensure_loaded(
    clients: Clients, out: Output, name: str, *, limit: float
) -> loader_pb2.Model:
    """Load a model, showing what it does meanwhile, and return it when it is ready."""
    request = loader_pb2.LoadModelRequest(name=name)
    try:
        async with _watching(clients, out, name, f"loading {name}"):
            answer = await _within(
                clients.call("loader", clients.loader.LoadModel, request, timeout=limit),
                f"{name} was not ready within {text.duration(limit)}",
                f"the load goes on: see `corral status {name}` and `corral logs {name}`",
            )
    except asyncio.CancelledError:
        out.note(f"\nthe load of {name} goes on; stop it with `corral unload {name}`")
        raise
    return answer.model


async def get(clients: Clients, name: str) -> loader_pb2.Model:
    """Return a model, or say what to do if there is none of that name."""
    request = loader_pb2.GetModelRequest(name=name)
    try:
        return (await clients.call("loader", clients.loader.GetModel, request)).model
    except ModelNotFoundError as error:
        if hint := await _advice(clients, views.bare(name)):
            text = f"there is no model {views.bare(name)!r} here"
            raise Failure(text, hint, reason=error.reason) from error
        raise


async def _advice(clients: Clients, name: str) -> str:
    """Return what somebody who asked for a missing model may have meant; empty if nothing is near."""
    with suppress(CorralError, Failure):
        models = await clients.call(
            "loader",
            clients.loader.ListModels,
            loader_pb2.ListModelsRequest(page_size=_PAGE),
            timeout=_ADVICE_TIMEOUT,
        )
        names = [views.bare(model.name) for model in models.models]
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


@asynccontextmanager
async def _watching(clients: Clients, out: Output, name: str, title: str) -> AsyncIterator[None]:
    """Show a model's states, and the time, for as long as the block runs."""
    with spinner(out, f"{title} …") as waiting:
        watcher = asyncio.create_task(_tell_states(clients, name, title, waiting))
        try:
            yield
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher


async def _tell_states(clients: Clients, name: str, title: str, waiting: Waiting) -> None:
    request = loader_pb2.WatchModelsRequest(filter=loader_pb2.ModelFilter(name_contains=name))
    # Only decoration: if the watch fails, the call that is waited for tells why.
    with suppress(CorralError, Failure):
        async for change in clients.stream("loader", clients.loader.WatchModels, request):
            if views.bare(change.model.name) != views.bare(name):
                continue
            words = _WORDS.get(change.model.state)
            if words and change.model.state not in (_STATE.STATE_UNLOADED, _STATE.STATE_READY):
                waiting.say(f"{title}: {words} …")


async def _within(work: Awaitable[_T], message: str, hint: str) -> _T:
    try:
        return await work
    except DeadlineError:
        raise Failure(message, hint, reason="DEADLINE_EXCEEDED") from None
