"""What would be evicted to load a model."""

from __future__ import annotations

import typer

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import loader_messages, messages, phrases, text, views
from services.cli.display.output import Column, Output
from services.cli.models import lookup


async def plan(clients: Clients, out: Output, name: str) -> None:
    """Show what would be evicted to load a model; exits with 1 if it does not fit."""
    name = messages.bare((await lookup.get(clients, name)).name)
    request = loader_pb2.PlanEvictionRequest(name=name)
    answer = await clients.call("loader", clients.loader.PlanEviction, request)
    view = loader_messages.plan(name, answer)
    if out.as_json:
        out.emit(view)
    else:
        _write_plan(out, view)
    if not view["fits"]:
        raise typer.Exit(1)


def _write_plan(out: Output, view: views.Plan) -> None:
    evictions, blockers = view["evictions"], view["blockers"]
    if not view["fits"]:
        verdict, style = "does not fit", "red"
    elif evictions:
        goes = "is evicted" if len(evictions) == 1 else "are evicted"
        verdict, style = f"fits if {text.plural(len(evictions), 'model')} {goes}", "yellow"
    else:
        verdict, style = "fits", "green"
    out.line(f"{view['model']} {verdict}", style)
    if view["explanation"]:
        out.line(view["explanation"])
    if needed := phrases.memory(view["memory"]):
        out.line(f"it needs {needed}")
    if evictions:
        out.line()
        out.table(
            [
                Column("EVICTED"),
                Column("FREES", right=True),
                Column("IDLE", right=True),
                Column("WHY", flexible=True),
            ],
            [
                (
                    (one["model"], "bold"),
                    text.size(one["freed_bytes"]) if one["freed_bytes"] else "",
                    "" if one["idle_seconds"] is None else text.span(one["idle_seconds"]),
                    one["explanation"],
                )
                for one in evictions
            ],
        )
    if blockers:
        out.line()
        out.table(
            [Column("STAYS"), Column("FOR NOW"), Column("WHY", flexible=True)],
            [
                (
                    (one["model"], "bold"),
                    "may go soon" if one["temporary"] else "",
                    one["explanation"],
                )
                for one in blockers
            ],
        )
    if not view["fits"]:
        wait = "wait, " if any(one["temporary"] for one in blockers) else ""
        out.note(
            f"next:  {wait}`corral unload` or `corral unpin` what stays, or raise a limit with"
            " `corral settings set`"
        )
