"""The loader's settings: listing and changing them while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration

from corral.loader.v1 import loader_pb2
from services.cli.client import setting_fields
from services.cli.client.clients import Clients
from services.cli.display import loader_messages, messages
from services.cli.display.output import Column, Output
from services.cli.failures import Failure
from services.common.errors import InvalidRequestError

_SOURCES = {"default": "dim", "start": "cyan", "runtime": "yellow"}


async def show(clients: Clients, out: Output) -> None:
    """List the settings with value, source and meaning."""
    answer = await clients.call(
        "loader", clients.loader.GetSettings, loader_pb2.GetSettingsRequest()
    )
    listed = _listed(answer.settings, answer.sources)
    if out.as_json:
        out.emit({"settings": listed})
        return
    out.table(
        [
            Column("SETTING"),
            Column("VALUE"),
            Column("FROM", rank=1),
            Column("WHAT", flexible=True, style="dim"),
        ],
        [
            (
                (name, "bold"),
                _shown(name, one["value"]),
                (one["source"], _SOURCES.get(one["source"], "")),
                one["meaning"],
            )
            for name, one in listed.items()
        ],
    )


async def change(clients: Clients, out: Output, assignments: Sequence[str]) -> None:
    """Change settings as `name=value` says, and tell what they were and are."""
    request = loader_pb2.UpdateSettingsRequest()
    for assignment in assignments:
        _assign(request, assignment)
    before = await clients.call(
        "loader", clients.loader.GetSettings, loader_pb2.GetSettingsRequest()
    )
    try:
        answer = await clients.call("loader", clients.loader.UpdateSettings, request)
    except InvalidRequestError as error:
        hint = "nothing was changed; see what each setting means with `corral settings`"
        raise Failure(error.message, hint, exit_code=2, reason=error.reason) from error
    old = _listed(before.settings, before.sources)
    new = _listed(answer.settings, answer.sources)
    if out.as_json:
        out.emit({"settings": new, "changed": list(request.update_mask.paths)})
        return
    for name in request.update_mask.paths:
        was, now = _shown(name, old[name]["value"]), _shown(name, new[name]["value"])
        out.line(f"{name}: {was} → {now}" if was != now else f"{name}: {now}, as before")


def _assign(request: loader_pb2.UpdateSettingsRequest, assignment: str) -> None:
    typed, equals, value = assignment.partition("=")
    name = setting_fields.named(typed)
    if not equals:
        raise Failure(
            f"{name} is given no value",
            f"write {name}=VALUE; it means: {setting_fields.MEANINGS[name]}",
            exit_code=2,
            reason="INVALID_REQUEST",
        )
    if name in request.update_mask.paths:
        raise Failure(
            f"{name} is given twice",
            "give each setting once",
            exit_code=2,
            reason="INVALID_REQUEST",
        )
    parsed = setting_fields.parse(name, _kind(name), value)
    if _kind(name) == "duration":
        getattr(request.settings, name).FromNanoseconds(round(parsed * 1e9))
    else:
        setattr(request.settings, name, parsed)
    request.update_mask.paths.append(name)


def _listed(settings: loader_pb2.Settings, sources: Any) -> dict[str, messages.View]:
    listed = loader_messages.settings(settings, sources)
    for name, view in listed.items():
        view["meaning"] = setting_fields.MEANINGS.get(name, "")
    return listed


def _kind(name: str) -> str:
    value = getattr(loader_pb2.Settings(), name)
    return "duration" if isinstance(value, Duration) else type(value).__name__


def _shown(name: str, value: Any) -> str:
    return setting_fields.shown(value, _kind(name))
