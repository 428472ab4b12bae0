"""Installing a model, with its progress."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from google.longrunning import operations_pb2

from corral.gallery.v1 import gallery_pb2
from services.cli.client.clients import Clients
from services.cli.display import messages, text
from services.cli.display.output import Output
from services.cli.failures import Failure, Lost
from services.cli.tracking import operation_progress
from services.common.errors import CorralError

# Before the operation starts, the gallery may have to read an index.
_START_TIMEOUT: Final = 60.0
_START_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Order:
    """What to install, and how."""

    entry: str
    name: str = ""
    variant: str = ""
    force: bool = False
    wait: bool = True


async def install(clients: Clients, out: Output, order: Order) -> None:
    """Install a model; when interrupted, cancel the installation."""
    operation = await _start(clients, order)
    name = messages.bare(operation.name)
    if not order.wait:
        if out.as_json:
            out.emit({"type": "started", "operation": messages.operation(operation)})
        else:
            out.line(name)
            out.note(f"Follow it with `corral operations watch {name}`.", "dim")
        return
    try:
        ended = await operation_progress.to_the_end(clients, out, operation, order.entry)
    except asyncio.CancelledError:
        await _cancel(clients, out, operation.name)
        raise
    result = operation_progress.outcome(ended, gallery_pb2.InstallModelResult())
    model = messages.bare(result.model.name)
    if out.as_json:
        out.emit(
            {
                "type": "installed",
                "model": messages.installed(result.model),
                "bytes_fetched": result.bytes_fetched,
                "operation": messages.operation(ended),
            }
        )
        return
    fetched = (
        f"{text.size(result.bytes_fetched)} fetched" if result.bytes_fetched else "already complete"
    )
    out.line(f"installed {model} ({text.size(result.model.size_bytes)}, {fetched})")
    out.note(f'Try it: corral run {model} "Hello!"', "dim")


async def _start(clients: Clients, order: Order) -> operations_pb2.Operation:
    request = gallery_pb2.InstallModelRequest(
        entry=order.entry,
        model_id=order.name,
        variant=order.variant,
        force=order.force,
        # A retry with the same id returns the first request's operation, if that one did arrive.
        request_id=str(uuid.uuid4()),
    )
    for remaining in reversed(range(_START_TRIES)):
        try:
            return await clients.call(
                "gallery", clients.gallery.InstallModel, request, timeout=_START_TIMEOUT
            )
        except Lost:
            if not remaining:
                raise
    raise AssertionError("the loop returns or raises")


async def _cancel(clients: Clients, out: Output, name: str) -> None:
    out.note("\ncancelling the installation ...")
    try:
        ended = await operation_progress.cancel(clients, name)
    except (CorralError, Failure, TimeoutError) as error:
        why = str(error) or "no answer in time"
        out.note(f"could not cancel it: {why}", "yellow")
        out.note(f"It may continue: see `corral operations watch {messages.bare(name)}`.")
        return
    if out.as_json:
        with suppress(BrokenPipeError):
            out.emit({"type": "cancelled", "operation": messages.operation(ended)})
    if ended.HasField("error"):
        out.note("cancelled; what was fetched is kept for the next try")
    else:
        out.note("it ended before it could be cancelled: the model is installed")
