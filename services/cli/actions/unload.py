"""Unloading one model or all of them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Final

import typer

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import messages, text, views
from services.cli.display.output import Output
from services.cli.failures import Failure, explain, within_deadline
from services.cli.models import lookup, pages
from services.cli.tracking import model_changes
from services.common.errors import CorralError, ModelBusyError

_STATE = loader_pb2.Model.State
# The states with a process, or about to start one.
_HELD: Final = [
    state
    for state in model_changes.ACTIVE
    if state not in (_STATE.STATE_BACKOFF, _STATE.STATE_FAILED)
]


async def one(clients: Clients, out: Output, name: str, *, force: bool, limit: float) -> None:
    """Unload a model and show how long it took."""
    before = await lookup.get(clients, name)
    name = messages.bare(before.name)
    began = time.monotonic()
    async with model_changes.progress(clients, out, name, f"unloading {name}"):
        model = await _unload(clients, name, force=force, limit=limit)
    took = time.monotonic() - began
    if out.as_json:
        out.emit({**messages.model(model), "seconds": round(took, 3)})
    elif before.state == _STATE.STATE_UNLOADED:
        out.line(f"{messages.bare(model.name)} was not loaded")
    else:
        out.line(f"{messages.bare(model.name)} is unloaded, after {text.duration(took)}")


async def everything(clients: Clients, out: Output, *, force: bool, limit: float) -> None:
    """Unload all models in parallel; fails if one of them stays loaded."""
    names = [messages.bare(model.name) for model in await pages.models(clients, _HELD)]
    done: list[views.UnloadedModel] = []
    failed: list[views.StayingModel] = []

    async def each(name: str) -> None:
        began = time.monotonic()
        try:
            model = await _unload(clients, name, force=force, limit=limit)
        except (CorralError, Failure) as error:
            failure = error if isinstance(error, Failure) else explain(error, model=name)
            failed.append(
                {
                    "name": name,
                    "reason": failure.reason,
                    "message": failure.message,
                    "hint": failure.hint,
                }
            )
            out.note(f"{name} stays loaded: {failure.message}", "red")
            return
        took = time.monotonic() - began
        done.append({**messages.model(model), "seconds": round(took, 3)})
        if not out.as_json:
            out.line(f"{name} is unloaded, after {text.duration(took)}")

    await asyncio.gather(*map(each, names))
    if out.as_json:
        out.emit({"models": done, "failed": failed})
    elif not names:
        out.line("no model is loaded")
    elif failed and not force:
        out.note(
            "next:  wait for the running calls, or cut them with `corral unload --all --force`"
        )
    if failed:
        raise typer.Exit(1)


async def _unload(clients: Clients, name: str, *, force: bool, limit: float) -> loader_pb2.Model:
    request = loader_pb2.UnloadModelRequest(name=name, force=force)
    try:
        answer = await within_deadline(
            clients.call("loader", clients.loader.UnloadModel, request, timeout=limit),
            f"{name} was not unloaded within {text.duration(limit)}",
            f"the unload continues: see `corral status {name}`, or cut running calls with --force",
        )
    except ModelBusyError as error:
        raise await _busy(clients, name, error) from error
    return answer.model


async def _busy(clients: Clients, name: str, error: ModelBusyError) -> Failure:
    """Return the failure with the number of calls that use the model."""
    failure = explain(error, model=name)
    with suppress(CorralError, Failure):
        view = messages.model(await lookup.get(clients, name))
        running = sum(instance["active_calls"] for instance in view["instances"])
        queued = f" and {view['queued_calls']} wait" if view["queued_calls"] else ""
        if running:
            runs = "call runs" if running == 1 else "calls run"
            failure.details = (f"{running} {runs}{queued}",)
    return failure
