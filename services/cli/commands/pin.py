"""`corral plan`, `corral pin`, `corral unpin` and `corral drain`: who may stay loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import invoke

from . import completion
from .parameters import JsonFlag, LoaderAddress, ModelName, duration_option


def plan(model: ModelName, json: JsonFlag = False, loader: LoaderAddress = None) -> None:
    """Show, without doing it, what would be evicted to load a model, and why.

    Exits with 1 if the model does not fit.
    """
    from services.cli.status import capacity as action

    invoke.run(
        lambda clients, out: action.plan(clients, out, model),
        as_json=json,
        addresses={"loader": loader},
        model=model,
    )


def pin(model: ModelName, json: JsonFlag = False, loader: LoaderAddress = None) -> None:
    """Protect a model against eviction and idle unloading. It is kept over restarts."""
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
    """Lift the protection of a pinned model."""
    _set_pinned(model, False, json, loader)


def drain(
    timeout: Annotated[
        float | None,
        duration_option("--timeout", "How long running calls may take to end.", "the loader's own"),
    ] = None,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
) -> None:
    """Let running calls end and unload every model, as before a shutdown.

    The loader takes no new calls from then on until it is started anew.
    """
    from services.cli.actions import pin as action

    invoke.run(
        lambda clients, out: action.drain(clients, out, timeout),
        as_json=json,
        addresses={"loader": loader},
    )


def _set_pinned(model: str, pinned: bool, json: bool, loader: str | None) -> None:
    from services.cli.actions import pin as action

    invoke.run(
        lambda clients, out: action.pin(clients, out, model, pinned=pinned),
        as_json=json,
        addresses={"loader": loader},
        model=model,
    )
