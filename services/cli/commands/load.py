"""`corral load`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import invoke

from .parameters import AdvisingGallery, JsonFlag, LoaderAddress, ModelName, Timeout


def load(
    model: ModelName,
    now: Annotated[
        bool,
        typer.Option("--now", help="Try at once, even during the wait after failures or crashes."),
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return as soon as the load has started.")
    ] = False,
    timeout: Timeout = 600.0,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
    gallery: AdvisingGallery = None,
) -> None:
    """Load a model and wait until it is ready. The first call to a model also loads it."""
    from services.cli.actions import load as action

    work = action.begin if no_wait else action.load
    invoke.run(
        lambda clients, out: work(clients, out, model, now=now, limit=timeout),
        as_json=json,
        addresses={"loader": loader, "gallery": gallery},
        model=model,
    )
