"""`corral operations`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import invoke

from . import completion
from .parameters import GalleryAddress, JsonFlag

app = typer.Typer(help="List, follow and cancel the gallery's work: installs, updates, deletions.")

OperationName = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="The operation, as `corral operations` shows it.",
        autocompletion=completion.operations,
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def default(
    ctx: typer.Context,
    json: JsonFlag = False,
    gallery: GalleryAddress = None,
) -> None:
    """List, follow and cancel the gallery's work: installs, updates, deletions."""
    if ctx.invoked_subcommand is None:
        list_operations(json=json, gallery=gallery)


@app.command("list")
def list_operations(json: JsonFlag = False, gallery: GalleryAddress = None) -> None:
    """List the operations, newest first."""
    from services.cli.actions import operations as action

    invoke.run(action.list_all, as_json=json, addresses={"gallery": gallery})


@app.command()
def watch(operation: OperationName, json: JsonFlag = False, gallery: GalleryAddress = None) -> None:
    """Follow an operation to its end. Ctrl-C stops watching, not the operation."""
    from services.cli.actions import operations as action

    invoke.run(
        lambda clients, out: action.watch(clients, out, operation),
        as_json=json,
        addresses={"gallery": gallery},
    )


@app.command()
def cancel(
    operation: OperationName, json: JsonFlag = False, gallery: GalleryAddress = None
) -> None:
    """Cancel an operation and wait until it has stopped."""
    from services.cli.actions import operations as action

    invoke.run(
        lambda clients, out: action.cancel(clients, out, operation),
        as_json=json,
        addresses={"gallery": gallery},
    )
