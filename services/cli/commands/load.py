"""`corral load` and `corral unload`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import completion, launch
from services.cli.options import AdvisingGallery, JsonFlag, LoaderAddress, ModelName, Timeout

LoadedModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="The model's name, as `corral models` shows it.",
        autocompletion=completion.loaded,
        show_default=False,
    ),
]


def load(
    model: ModelName,
    timeout: Timeout = 600.0,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
    gallery: AdvisingGallery = None,
) -> None:
    """Load a model and wait until it is ready. The first call to a model does the same by itself."""
    from services.cli.actions import load as action

    launch.run(
        lambda clients, out: action.load(clients, out, model, limit=timeout),
        as_json=json,
        addresses={"loader": loader, "gallery": gallery},
        model=model,
    )


def unload(
    model: LoadedModel,
    force: Annotated[
        bool, typer.Option("--force", help="Cut running calls instead of waiting for them.")
    ] = False,
    timeout: Timeout = 600.0,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
) -> None:
    """Unload a model and wait until its processes are gone."""
    from services.cli.actions import load as action

    launch.run(
        lambda clients, out: action.unload(clients, out, model, force=force, limit=timeout),
        as_json=json,
        addresses={"loader": loader},
        model=model,
    )
