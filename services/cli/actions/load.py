"""Loading a model."""

from __future__ import annotations

import time
from typing import Final

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import messages, phrases, text
from services.cli.display.output import Output
from services.cli.failures import within_deadline
from services.cli.models import load_failure, loading, lookup
from services.common.errors import CorralError

_READY: Final = loader_pb2.Model.State.STATE_READY


async def load(clients: Clients, out: Output, name: str, *, now: bool, limit: float) -> None:
    """Load a model and show its state, the time and its memory."""
    before = await lookup.get(clients, name)
    name = messages.bare(before.name)
    began = time.monotonic()
    if before.state != _READY:
        after = await loading.ensure_loaded(clients, out, name, now=now, limit=limit)
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
    """Start to load a model, and show its state without waiting for the load."""
    name = messages.bare((await lookup.get(clients, name)).name)
    request = loader_pb2.LoadModelRequest(name=name, return_immediately=True, reset_backoff=now)
    try:
        answer = await within_deadline(
            clients.call("loader", clients.loader.LoadModel, request, timeout=limit),
            f"the loader did not answer within {text.duration(limit)}",
            f"see the model's state with `corral status {name}`",
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
