"""`corral backend`: for writing backends, and for testing with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli import invoke
from services.cli.display.output import Output

app = typer.Typer(no_args_is_help=True, help="Try backends, and clients of backends.")

_INSTALLING = "To let a loader find it"


@app.command("fake")
def fake(
    addr: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to serve: host:port or unix:/path.")
    ] = "127.0.0.1:50061",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change its behaviour; repeatable."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="List the keys for --set, with their defaults.")
    ] = False,
    install: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Do not serve: install it into this folder of backends.",
            rich_help_panel=_INSTALLING,
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(help="The installed backend's name.", rich_help_panel=_INSTALLING)
    ] = "fake",
    no_exec: Annotated[
        bool,
        typer.Option(
            "--no-exec",
            help="Install a run.sh that stays the parent of the program.",
            rich_help_panel=_INSTALLING,
        ),
    ] = False,
) -> None:
    """Serve a fake backend: without an engine, with failures on request.

    It answers every RPC of backend.Backend, always in the same way. To test
    clients and loaders, --set makes it crash, hang, refuse to load and more.
    """
    from services.cli.actions import backend as action

    out = Output()
    arguments = [f"--set={pair}" for pair in settings or ()]
    if show:
        arguments = ["--list"]
    elif install is not None:
        arguments += [f"--install={install}", f"--name={name}"]
        arguments += ["--no-exec"] if no_exec else []
    else:
        arguments.append(f"--addr={addr}")
    invoke.guarded(lambda: action.become("fake", arguments), out)
