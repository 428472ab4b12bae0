"""`corral unload`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import invoke

from . import completion
from .parameters import JsonFlag, LoaderAddress, Timeout

LoadedModel = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="The model's name, as `corral models` shows it.",
        autocompletion=completion.loaded,
        show_default=False,
    ),
]


def unload(
    model: LoadedModel = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Unload every model that is loaded or being loaded.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Cut running calls instead of waiting for them.")
    ] = False,
    timeout: Timeout = 600.0,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
) -> None:
    """Unload a model and wait until its processes have ended."""
    from services.cli.actions import unload as action

    if everything == (model is not None):
        raise typer.BadParameter("name one model, or give --all", param_hint="MODEL")
    invoke.run(
        lambda clients, out: (
            action.one(clients, out, model, force=force, limit=timeout)
            if model is not None
            else action.everything(clients, out, force=force, limit=timeout)
        ),
        as_json=json,
        addresses={"loader": loader},
        model=model or "",
    )
