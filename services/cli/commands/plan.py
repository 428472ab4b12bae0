"""`corral plan`."""

from __future__ import annotations

from services.cli import invoke

from .parameters import JsonFlag, LoaderAddress, ModelName


def plan(model: ModelName, json: JsonFlag = False, loader: LoaderAddress = None) -> None:
    """Show which models would be evicted to load a model, and why; nothing is changed.

    Exits with 1 if the model does not fit.
    """
    from services.cli.actions import plan as action

    invoke.run(
        lambda clients, out: action.plan(clients, out, model),
        as_json=json,
        addresses={"loader": loader},
        model=model,
    )
