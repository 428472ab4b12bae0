"""`corral drain`."""

from __future__ import annotations

from typing import Annotated

from services.cli import invoke

from .parameters import JsonFlag, LoaderAddress, duration_option


def drain(
    timeout: Annotated[
        float | None,
        duration_option("--timeout", "How long to wait for running calls.", "the loader's own"),
    ] = None,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
) -> None:
    """Wait for running calls and unload every model, as before a shutdown.

    The loader refuses new calls until it is restarted.
    """
    from services.cli.actions import drain as action

    invoke.run(
        lambda clients, out: action.drain(clients, out, timeout),
        as_json=json,
        addresses={"loader": loader},
    )
