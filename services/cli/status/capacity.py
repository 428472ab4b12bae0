"""The loader's capacity: its slots, its memory, and the models that wait for them."""

from __future__ import annotations

from typing import Final

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import loader_messages, text, views
from services.cli.display.output import Output
from services.cli.failures import Failure
from services.common.errors import CorralError

_TIMEOUT: Final = 5.0
_BAR: Final = 20
# Models, other programs, free.
_BLOCKS: Final = ("█", "▒", "░")
_ASCII: Final = ("#", "=", "-")


async def query(clients: Clients) -> views.Capacity | None:
    """Return the loader's capacity, or None if it does not answer."""
    try:
        answer = await clients.call(
            "loader",
            clients.loader.GetCapacity,
            loader_pb2.GetCapacityRequest(),
            timeout=_TIMEOUT,
        )
    except (CorralError, Failure):
        return None
    return loader_messages.capacity(answer)


def write(out: Output, view: views.Capacity) -> None:
    """Write the slots in one line, and a bar for each kind of memory."""
    slots = [
        _of("models", view["active_models"], view["max_active_models"]),
        _of("loads", view["loads"], view["max_loads"]),
        _of("calls", view["calls"], view["max_calls"]),
    ]
    if view["waiting"]:
        slots.append(f"{text.plural(len(view['waiting']), 'model')} waiting")
    out.line("capacity: " + ", ".join(slots))
    utf8 = out.stdout.encoding.lower().startswith("utf")
    width = max((len(device["name"]) for device in view["devices"]), default=0)
    for device in view["devices"]:
        parts = [
            device["name"].ljust(width),
            bar(device, _BLOCKS if utf8 else _ASCII),
            _amounts(device),
            device["description"],
        ]
        # A narrow terminal gets the figures only.
        for least in (3, 1):
            if len("  ".join(parts)) > out.stdout.width:
                del parts[least]
        out.line("  ".join(part for part in parts if part))


def bar(device: views.DeviceMemory, blocks: tuple[str, str, str] = _BLOCKS) -> str:
    """Return a bar of a device's memory: models, other programs, free."""
    total = device["total_bytes"]
    if not total:
        return blocks[2] * _BAR
    used = total - min(device["available_bytes"], total)
    models = min(device["reserved_bytes"], total)
    first = _cells(models, total)
    second = max(_cells(used, total), first) - first
    return blocks[0] * first + blocks[1] * second + blocks[2] * (_BAR - first - second)


def _of(what: str, count: int, limit: int) -> str:
    return f"{what} {count}/{limit}" if limit else f"{what} {count}"


def _cells(part: int, total: int) -> int:
    """Return the number of cells for this part; at least one if it is not empty."""
    return max(round(_BAR * part / total), 1) if part > 0 else 0


def _amounts(device: views.Device) -> str:
    total, available = device["total_bytes"], device["available_bytes"]
    models = text.size(device["reserved_bytes"])
    parts = [
        f"{text.size(max(total - available, 0))} of {text.size(total)} used",
        f"models {models} of {text.size(device['budget_bytes'])}"
        if device["budget_bytes"]
        else f"models {models}",
    ]
    return ", ".join(parts)
