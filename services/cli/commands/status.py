"""`corral status`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import invoke

from . import completion
from .parameters import GalleryAddress, JsonFlag, LoaderAddress, MetricsAddress, MonitorAddress


def status(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="One model in detail.",
            autocompletion=completion.models,
            show_default=False,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Include models that are not loaded.")
    ] = False,
    options: Annotated[
        bool,
        typer.Option(
            "--options",
            "-o",
            help="With MODEL: the options that its backend is given, and their sources.",
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            "-w",
            help="Show each change until Ctrl-C: on a terminal the page is redrawn, otherwise a line is added.",
        ),
    ] = False,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
    gallery: GalleryAddress = None,
    monitor: MonitorAddress = None,
    metrics: MetricsAddress = None,
) -> None:
    """Show the health of the services, the loader's capacity, and what the models do and use.

    Exits with 1 unless every service that `corral up` started or you named is serving.
    """
    from services.cli.actions import status as action

    if options and not model:
        raise typer.BadParameter("goes with one MODEL", param_hint="--options")
    invoke.run(
        lambda clients, out: action.show(
            clients, out, model, everything=everything, options=options, watch=watch
        ),
        as_json=json,
        addresses={"loader": loader, "gallery": gallery, "monitor": monitor, "metrics": metrics},
        model=model or "",
    )
