"""`corral status --watch`: a page that is redrawn at each change, or a line for each change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Final

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import messages, phrases, views
from services.cli.display.output import Output
from services.cli.failures import Failure, explain
from services.cli.models import lookup
from services.cli.tracking import model_changes
from services.common.backoff import Backoff
from services.common.errors import CorralError

from . import model_status, overview

# Asks the services, and returns a function that writes their answers.
Draw = Callable[[], Awaitable[Callable[[Output], None]]]

# Times and the monitor's figures change without a change in the loader.
_INTERVAL: Final = 2.0
# Changes within this time are drawn together.
_SETTLE: Final = 0.25
_RECONNECT: Final = Backoff(initial=0.5, factor=2, maximum=5, jitter=0.2)
_CHANGE = loader_pb2.WatchModelsResponse


async def show_all(clients: Clients, out: Output, *, everything: bool) -> None:
    """Show every service and model, and each change, until Ctrl-C."""
    if not _on_screen(out):
        await _lines(clients, out, "", everything=everything)

    async def draw() -> Callable[[Output], None]:
        found = await overview.gather(clients, everything=everything)
        return lambda page: overview.write(clients, page, found)

    await _screen(clients, out, draw)


async def show_model(clients: Clients, out: Output, name: str, *, options: bool) -> None:
    """Show one model, and each of its changes, until Ctrl-C."""
    name = messages.bare((await lookup.get(clients, name)).name)
    if not _on_screen(out):
        await _lines(clients, out, name, everything=True)

    async def draw() -> Callable[[Output], None]:
        view = await model_status.gather(clients, name)
        return lambda page: model_status.write(page, view, options=options)

    await _screen(clients, out, draw, name)


def _on_screen(out: Output) -> bool:
    return not out.as_json and out.stdout.is_terminal and not out.stdout.is_dumb_terminal


async def _screen(clients: Clients, out: Output, draw: Draw, name: str = "") -> None:
    from rich.live import Live
    from rich.text import Text

    # An output of its own: writing through `out` would redraw the screen.
    page = Output()
    changed = asyncio.Event()
    watcher = asyncio.create_task(_notice(clients, name, changed))
    try:
        with Live(console=out.stdout, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                changed.clear()
                try:
                    write = await draw()
                except (CorralError, Failure) as error:
                    failure = error if isinstance(error, Failure) else explain(error, model=name)
                    live.update(Text(f"{failure.message}\nwaiting …", "red"), refresh=True)
                else:
                    with page.stdout.capture() as captured:
                        write(page)
                    shown = Text.from_ansi(captured.get(), no_wrap=True, overflow="ellipsis")
                    live.update(shown, refresh=True)
                # Until a change, or until the page is out of date.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_INTERVAL):
                        await changed.wait()
                        await asyncio.sleep(_SETTLE)
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _notice(clients: Clients, name: str, changed: asyncio.Event) -> None:
    """Set `changed` at each change, also across restarts of the loader."""
    only = loader_pb2.ModelFilter(name_contains=name, states=[] if name else model_changes.ACTIVE)
    failures = 0
    while True:
        with suppress(CorralError, Failure):
            request = loader_pb2.WatchModelsRequest(filter=only)
            async for _ in clients.stream("loader", clients.loader.WatchModels, request):
                failures = 0
                changed.set()
        failures += 1
        await asyncio.sleep(_RECONNECT.delay(failures))


async def _lines(clients: Clients, out: Output, name: str, *, everything: bool) -> None:
    """Write a line for each model and each change, until Ctrl-C."""
    only = loader_pb2.ModelFilter(name_contains=name)
    last: dict[str, tuple[object, ...]] = {}
    async for change in model_changes.changes(clients, out, only):
        if change.change_type == _CHANGE.CHANGE_TYPE_SNAPSHOT_END:
            continue
        view = messages.model(change.model)
        if name and view["name"] != name:
            continue
        kind = messages.word(_CHANGE.ChangeType, change.change_type, "CHANGE_TYPE_")
        removed = kind == "removed"
        looks = _looks(view)
        known, last[view["name"]] = last.get(view["name"]), looks
        quiet = kind == "snapshot" and not everything and view["state"] == "unloaded"
        if quiet and known is None:
            continue
        if out.as_json:
            out.emit({"type": kind, "model": view})
        elif removed or known != looks:
            _line(out, view, removed=removed)


def _looks(view: views.Model) -> tuple[object, ...]:
    """Return the fields whose change is worth a line; the number of calls changes too often."""
    return (
        view["state"],
        view["state_message"],
        view["backend"],
        view["pinned"],
        view["crash_count"],
    )


def _line(out: Output, view: views.Model, *, removed: bool) -> None:
    moment = f"{datetime.fromtimestamp(time.time()).astimezone():%H:%M:%S}"
    what = "removed" if removed else view["state"]
    note = "" if removed else phrases.note(view)
    out.line("  ".join(part for part in (moment, view["name"], what, note) if part))
