"""`corral backends`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import invoke

from . import completion
from .parameters import JsonFlag, LoaderAddress


def backends(
    backend: Annotated[
        str | None,
        typer.Argument(
            metavar="BACKEND",
            help="One backend in detail, by its name or an alias.",
            autocompletion=completion.backends,
            show_default=False,
        ),
    ] = None,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
) -> None:
    """List the backends, usable or not, in the order in which their folders are searched."""
    from services.cli.actions import backends as action

    invoke.run(
        lambda clients, out: (
            action.show(clients, out, backend) if backend else action.show_all(clients, out)
        ),
        as_json=json,
        addresses={"loader": loader},
    )
