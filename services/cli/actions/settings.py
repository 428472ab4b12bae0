"""The loader's settings: listing and changing them while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from corral.loader.v1 import loader_pb2
from services.cli.client import setting_fields
from services.cli.client.clients import Clients
from services.cli.display import loader_messages, views
from services.cli.display.output import Column, Output
from services.cli.failures import Failure
from services.common.errors import CorralError, InvalidRequestError

_SOURCES = {"default": "dim", "start": "cyan", "runtime": "yellow"}


async def show(clients: Clients, out: Output) -> None:
    """List the settings with value, source and meaning."""
    answer = await _get(clients)
    listed = loader_messages.settings(answer.settings, answer.sources, _meanings(answer))
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
                _shown(name, listed),
                (one["source"], _SOURCES.get(one["source"], "")),
                one["meaning"],
            )
            for name, one in listed.items()
        ],
    )


async def change(clients: Clients, out: Output, assignments: Sequence[str]) -> None:
    """Change settings by `name=value`, and show the old and the new values."""
    typed = _split(assignments)
    try:
        before = await _get(clients)
    except (CorralError, Failure):
        _request(typed, {})  # a value that cannot be right is reported first, without a loader too
        raise
    meanings = _meanings(before)
    request = _request(typed, meanings)
    try:
        answer = await clients.call("loader", clients.loader.UpdateSettings, request)
    except InvalidRequestError as error:
        hint = "nothing was changed; see what each setting means with `corral settings`"
        raise Failure(error.message, hint, exit_code=2, reason=error.reason) from error
    old = loader_messages.settings(before.settings, before.sources, meanings)
    new = loader_messages.settings(answer.settings, answer.sources, meanings)
    if out.as_json:
        out.emit({"settings": new, "changed": list(typed)})
        return
    for name in typed:
        was, now = _shown(name, old), _shown(name, new)
        out.line(f"{name}: {was} → {now}" if was != now else f"{name}: {now}, as before")


def _split(assignments: Sequence[str]) -> dict[str, str]:
    """Return the typed values by the settings' names."""
    typed: dict[str, str] = {}
    for assignment in assignments:
        written, equals, value = assignment.partition("=")
        name = setting_fields.named(written)
        if not equals:
            raise _wrong(f"{name} is given no value", f"write {name}=VALUE")
        if name in typed:
            raise _wrong(f"{name} is given twice", "give each setting once")
        typed[name] = value
    return typed


def _request(
    typed: Mapping[str, str], meanings: Mapping[str, str]
) -> loader_pb2.UpdateSettingsRequest:
    request = loader_pb2.UpdateSettingsRequest()
    for name, text in typed.items():
        kind = setting_fields.kind(name)
        value = setting_fields.parse(name, kind, text, meanings.get(name, ""))
        if kind == "duration":
            getattr(request.settings, name).FromNanoseconds(round(value * 1e9))
        else:
            setattr(request.settings, name, value)
        request.update_mask.paths.append(name)
    return request


def _wrong(message: str, hint: str) -> Failure:
    return Failure(message, hint, exit_code=2, reason="INVALID_REQUEST")


async def _get(clients: Clients) -> loader_pb2.GetSettingsResponse:
    return await clients.call("loader", clients.loader.GetSettings, loader_pb2.GetSettingsRequest())


def _meanings(answer: loader_pb2.GetSettingsResponse) -> dict[str, str]:
    """Return what each setting means; empty for a loader of a version that does not describe them."""
    return {one.name: one.description for one in answer.descriptions}


def _shown(name: str, settings: Mapping[str, views.Setting]) -> str:
    return setting_fields.shown(settings[name]["value"], setting_fields.kind(name))
