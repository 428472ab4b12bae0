"""`corral settings`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import invoke

from . import completion
from .parameters import JsonFlag, LoaderAddress

app = typer.Typer(help="List and change the loader's settings while it runs.")


@app.callback(invoke_without_command=True)
def default(ctx: typer.Context, json: JsonFlag = False, loader: LoaderAddress = None) -> None:
    """List and change the loader's settings while it runs."""
    if ctx.invoked_subcommand is None:
        list_settings(json=json, loader=loader)


@app.command("list")
def list_settings(json: JsonFlag = False, loader: LoaderAddress = None) -> None:
    """List the settings with value, source (default, start or runtime) and meaning."""
    from services.cli.actions import settings as action

    invoke.run(action.show, as_json=json, addresses={"loader": loader})


@app.command("set")
def set_settings(
    assignments: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=VALUE",
            help="For example max_active_backends=2 watchdog_idle=true watchdog_idle_timeout=10m.",
            autocompletion=completion.settings,
            show_default=False,
        ),
    ],
    json: JsonFlag = False,
    loader: LoaderAddress = None,
) -> None:
    """Change settings at once and permanently; models beyond the new limits are evicted."""
    from services.cli.actions import settings as action

    invoke.run(
        lambda clients, out: action.change(clients, out, assignments),
        as_json=json,
        addresses={"loader": loader},
    )
