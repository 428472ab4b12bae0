"""The services' health, the loader's capacity, and what the models do and use."""

from __future__ import annotations

import typer

from services.cli.client.addresses import SERVICES, Service
from services.cli.client.clients import Clients
from services.cli.display.output import Output
from services.cli.failures import Failure
from services.cli.status import model_status, overview, status_watch


async def show(
    clients: Clients,
    out: Output,
    name: str | None,
    *,
    everything: bool,
    options: bool,
    watch: bool,
) -> None:
    """Show all services and models, or the model of this name; with `watch`, until Ctrl-C.

    `everything` includes models that are not loaded; `options` adds what the model's backend is
    given at LoadModel.
    """
    if name and watch:
        await status_watch.show_model(clients, out, name, options=options)
    elif name:
        await _show_model(clients, out, name, options=options)
    elif watch:
        await status_watch.show_all(clients, out, everything=everything)
    else:
        await _show_overview(clients, out, everything=everything)


async def _show_model(clients: Clients, out: Output, name: str, *, options: bool) -> None:
    view = await model_status.gather(clients, name)
    if out.as_json:
        out.emit(view)
    else:
        model_status.write(out, view, options=options)


async def _show_overview(clients: Clients, out: Output, *, everything: bool) -> None:
    """Show the services and models once; fails if a service that should serve does not."""
    found = await overview.gather(clients, everything=everything)
    if out.as_json:
        services = {
            s: {"address": clients.addresses[s].address, "health": found.health[s]}
            for s in SERVICES
        }
        up = {"pid": found.running.pid, "http": found.http} if found.running else None
        out.emit(
            {
                "services": services,
                "up": up,
                "models": found.models,
                "capacity": found.capacity,
            }
        )
    else:
        overview.write(clients, out, found)
    if _unwell(clients, found.health):
        if all(state == "unreachable" for state in found.health.values()):
            raise Failure(
                "no service answers",
                "start them with `corral up`, or give their addresses with --loader and the others",
                reason="SERVICE_UNREACHABLE",
            )
        raise typer.Exit(1)


def _unwell(clients: Clients, health: dict[Service, str]) -> bool:
    """Return whether a service that should serve does not; one that was never started is fine."""
    expected = [s for s in SERVICES if clients.addresses[s].source != "default"]
    if any(health[service] != "serving" for service in expected):
        return True
    return not any(state == "serving" for state in health.values())
