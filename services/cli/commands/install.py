"""`corral install`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import invoke

from . import completion
from .parameters import GalleryAddress, JsonFlag


def install(
    entry: Annotated[
        str,
        typer.Argument(
            metavar="ENTRY",
            help="What to install, as `corral models --available` shows it; GALLERY@ENTRY for one"
            " of several galleries.",
            autocompletion=completion.entries,
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The installed model's name, instead of the entry's."),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="ENTRY", help="The variant to install, instead of the best for this machine."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Download and write everything again.")
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait", help="Wait for the operation to end, or print its name at once."
        ),
    ] = True,
    json: JsonFlag = False,
    gallery: GalleryAddress = None,
) -> None:
    """Install a model from a gallery. Ctrl-C cancels; what was fetched is kept for the next try."""
    from services.cli.actions import install as action

    order = action.Order(
        entry=entry, name=name or "", variant=variant or "", force=force, wait=wait
    )
    invoke.run(
        lambda clients, out: action.install(clients, out, order),
        as_json=json,
        addresses={"gallery": gallery},
    )
