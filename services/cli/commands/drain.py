"""`corral drain`."""

from __future__ import annotations

from typing import Annotated

from services.cli import invoke

from .parameters import JsonFlag, LoaderAddress, duration_option


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
    from services.cli.actions import drain as action

    invoke.run(
        lambda clients, out: action.drain(clients, out, timeout),
        as_json=json,
        addresses={"loader": loader},
    )
