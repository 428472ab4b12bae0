"""`corral models`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import invoke

from .parameters import GalleryAddress, JsonFlag, LoaderAddress, MonitorAddress


def models(
    available: Annotated[
        bool, typer.Option("--available", "-a", help="List what the galleries offer instead.")
    ] = False,
    installed: Annotated[
        bool,
        typer.Option(
            "--installed",
            "-i",
            help="List the models on disk, with sizes and origins; with --available, only"
            " entries that are installed.",
        ),
    ] = False,
    search: Annotated[
        str | None,
        typer.Option("--search", "-s", metavar="TEXT", help="Only models that match this text."),
    ] = None,
    tag: Annotated[
        str | None, typer.Option(metavar="TAG", help="Only entries with this tag (--available).")
    ] = None,
    usecase: Annotated[
        str | None,
        typer.Option(metavar="USECASE", help="Only models for this use: chat, embeddings, tts ..."),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="BACKEND", help="Only models for this backend.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="List at most N models; 0 means all.")
    ] = 0,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
    gallery: GalleryAddress = None,
    monitor: MonitorAddress = None,
) -> None:
    """List the models here with their state, or with --available the models to install."""
    from services.cli.actions import models as action

    wanted = action.Wanted(
        search=search or "",
        tag=tag or "",
        usecase=usecase or "",
        backend=backend or "",
        installed=installed or None,
        limit=limit,
    )
    if tag and not available:
        raise typer.BadParameter(
            "goes with --available: only galleries have tags", param_hint="--tag"
        )
    listing = (
        action.list_available
        if available
        else action.list_installed
        if installed
        else action.list_known
    )
    invoke.run(
        lambda clients, out: listing(clients, out, wanted),
        as_json=json,
        addresses={"loader": loader, "gallery": gallery, "monitor": monitor},
    )
