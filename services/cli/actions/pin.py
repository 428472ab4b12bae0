"""Pinning and unpinning models."""

from __future__ import annotations

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import messages
from services.cli.display.output import Output
from services.cli.models import lookup


async def pin(clients: Clients, out: Output, name: str, *, pinned: bool) -> None:
    """Protect a model against eviction and idle unloading, or remove the protection."""
    before = await lookup.get(clients, name)
    request = loader_pb2.PinModelRequest(name=name, pinned=pinned)
    answer = await clients.call("loader", clients.loader.PinModel, request)
    view = messages.model(answer.model)
    if out.as_json:
        out.emit(view)
        return
    already = " already" if before.pinned == pinned else ""
    if pinned:
        out.line(f"{view['name']} is pinned{already}: it is neither evicted nor unloaded when idle")
        if view["state"] == "unloaded":
            out.note(f"it is not loaded: load it with `corral load {view['name']}`", "dim")
    else:
        out.line(f"{view['name']} is {'not pinned' if already else 'no longer pinned'}")
