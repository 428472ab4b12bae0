"""Draining the loader: running calls end, every model is unloaded, no new calls are taken."""

from __future__ import annotations

from typing import Final

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import text
from services.cli.display.output import Output
from services.cli.display.progress import spinner
from services.cli.failures import within_deadline

# The time to stop all processes after the calls have ended, one after another at worst.
_DRAIN_MARGIN: Final = 600.0


async def drain(clients: Clients, out: Output, timeout: float | None) -> None:
    """Wait for running calls, unload every model, and refuse new calls from now on."""
    request = loader_pb2.DrainRequest()
    if timeout is not None:
        request.timeout.FromNanoseconds(round(timeout * 1e9))
    limit = (timeout or 0.0) + _DRAIN_MARGIN
    with spinner(out, "draining the loader …", clock=True):
        answer = await within_deadline(
            clients.call("loader", clients.loader.Drain, request, timeout=limit),
            f"the loader was not drained within {text.duration(limit)}",
            "the drain continues: see what still runs with `corral status`",
        )
    if out.as_json:
        out.emit({"cut_calls": answer.cut_calls})
        return
    cut = answer.cut_calls
    were = (
        f"; {text.plural(cut, 'call')} did not end in time and {'was' if cut == 1 else 'were'} cut"
    )
    out.line("drained: no model is loaded, and new calls are refused" + (were if cut else ""))
    out.note("restart the loader to accept calls again", "dim")
