"""`corral logs`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import launch
from services.cli.options import JsonFlag, LoaderAddress, ModelName


def logs(
    model: ModelName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")
    ] = False,
    tail: Annotated[
        int, typer.Option("--tail", "-n", min=0, metavar="N", help="At most so many old lines.")
    ] = 0,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
) -> None:
    """Show what a model's backend wrote to stdout and stderr, over its restarts."""
    from services.cli.actions import logs as action

    launch.run(
        lambda clients, out: action.show(clients, out, model, follow=follow, tail=tail),
        as_json=json,
        addresses={"loader": loader},
        model=model,
    )
