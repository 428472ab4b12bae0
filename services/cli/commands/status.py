"""`corral status`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import completion, launch
from services.cli.options import (
    GalleryAddress,
    JsonFlag,
    LoaderAddress,
    MetricsAddress,
    MonitorAddress,
)


def status(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="One model in detail.",
            autocompletion=completion.models,
            show_default=False,
        ),
    ] = None,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
    gallery: GalleryAddress = None,
    monitor: MonitorAddress = None,
    metrics: MetricsAddress = None,
) -> None:
    """Show the services' health and what the loaded models do and use.

    Exits with 1 if a service that was started by `corral up` or named here does not serve.
    """
    from services.cli.actions import status as action

    launch.run(
        lambda clients, out: (
            action.show_model(clients, out, model) if model else action.show_all(clients, out)
        ),
        as_json=json,
        addresses={"loader": loader, "gallery": gallery, "monitor": monitor, "metrics": metrics},
        model=model or "",
    )
