"""`corral pin` and `corral unpin`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import invoke

from . import completion
from .parameters import JsonFlag, LoaderAddress, ModelName


def pin(model: ModelName, json: JsonFlag = False, loader: LoaderAddress = None) -> None:
    """Protect a model against eviction and idle unloading, also after a restart."""
    _set_pinned(model, True, json, loader)


def unpin(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="The model's name, as `corral models` shows it.",
            autocompletion=completion.pinned,
            show_default=False,
        ),
    ],
    json: JsonFlag = False,
    loader: LoaderAddress = None,
) -> None:
    """Remove the protection of a pinned model."""
    _set_pinned(model, False, json, loader)


def _set_pinned(model: str, pinned: bool, json: bool, loader: str | None) -> None:
    from services.cli.actions import pin as action

    invoke.run(
        lambda clients, out: action.pin(clients, out, model, pinned=pinned),
        as_json=json,
        addresses={"loader": loader},
        model=model,
    )
