"""Loading a model and waiting until it is ready."""

from __future__ import annotations

import asyncio

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import text
from services.cli.display.output import Output
from services.cli.failures import within_deadline
from services.cli.models import load_failure
from services.cli.tracking import model_changes
from services.common.errors import CorralError


async def ensure_loaded(
    clients: Clients, out: Output, name: str, *, limit: float, now: bool = False
) -> loader_pb2.Model:
    """Load a model, showing its progress, and return it when it is ready.

    With `now`, it does not wait after earlier failures. `name` is the model's own, as `get` returns it.
    """
    request = loader_pb2.LoadModelRequest(name=name, reset_backoff=now)
    try:
        async with model_changes.progress(clients, out, name, f"loading {name}"):
            answer = await within_deadline(
                clients.call("loader", clients.loader.LoadModel, request, timeout=limit),
                f"{name} was not ready within {text.duration(limit)}",
                f"the load goes on: see `corral status {name}` and `corral logs {name}`",
            )
    except CorralError as error:
        raise await load_failure.explained(clients, name, error) from error
    except asyncio.CancelledError:
        out.note(f"\nthe load of {name} continues; stop it with `corral unload {name}`")
        raise
    return answer.model
