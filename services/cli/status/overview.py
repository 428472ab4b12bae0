"""All services and models at a glance: health, capacity, and what each model does and uses."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Final

from grpc_health.v1 import health_pb2

from corral.loader.v1 import loader_pb2
from corral.monitor.v1 import monitor_pb2
from services.cli.client import addresses
from services.cli.client.addresses import SERVICES, Running, Service
from services.cli.client.clients import Clients
from services.cli.display import messages, phrases, text, views
from services.cli.display.output import Column, Output
from services.cli.failures import Failure, Unreachable
from services.cli.models import pages
from services.cli.status import capacity
from services.cli.tracking import model_changes
from services.common.config.fields import corral_home
from services.common.errors import CorralError

# A service that does not report its health within this time counts as not serving.
HEALTH_TIMEOUT: Final = 3.0
_STATUS_TIMEOUT: Final = 5.0
_LOADER: Final = loader_pb2.DESCRIPTOR.services_by_name["LoaderService"].full_name
_HEALTH_STYLES: Final = {"serving": "green", "not serving": "yellow", "unreachable": "red"}


@dataclass
class Overview:
    """All that `corral status` shows."""

    health: dict[Service, str]
    models: list[views.ModelWithStatus] = field(default_factory=list)
    capacity: views.Capacity | None = None
    running: Running | None = None

    @property
    def http(self) -> str:
        """The address of /metrics, if it is known."""
        return self.running.addresses.get("http", "") if self.running else ""


async def gather(clients: Clients, *, everything: bool) -> Overview:
    """Ask all services; one that does not answer is left out, and shown as unreachable."""
    states = await asyncio.gather(*(_health(clients, service) for service in SERVICES))
    overview = Overview(dict(zip(SERVICES, states, strict=True)))
    overview.running = addresses.read(addresses.addresses_file(corral_home()))
    if overview.health["loader"] != "unreachable":
        found, overview.capacity = await asyncio.gather(
            _models(clients, everything=everything), capacity.query(clients)
        )
        overview.models = list(await asyncio.gather(*(with_status(clients, m) for m in found)))
    return overview


def write(clients: Clients, out: Output, overview: Overview) -> None:
    """Write the overview for people."""
    _services_table(clients, out, overview.health, overview.http)
    if overview.capacity:
        out.line()
        capacity.write(out, overview.capacity)
    _models_table(out, overview)


async def health_of(clients: Clients, service: Service, name: str = "") -> str:
    """Return the health of a service, or of the part of it with this name, in words."""
    request = health_pb2.HealthCheckRequest(service=name)
    try:
        answer = await clients.call(
            service, clients.health(service).Check, request, timeout=HEALTH_TIMEOUT
        )
    except Unreachable:
        return "unreachable"
    except (CorralError, Failure):
        return "not serving"
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return "serving" if serving else "not serving"


async def _health(clients: Clients, service: Service) -> str:
    """Return a service's health; a drained loader answers, but does not serve."""
    health = await health_of(clients, service)
    if service != "loader" or health != "serving":
        return health
    request = health_pb2.HealthCheckRequest(service=_LOADER)
    try:
        answer = await clients.call(
            service, clients.health(service).Check, request, timeout=HEALTH_TIMEOUT
        )
    except (CorralError, Failure):
        return health
    stopped = answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    return "not serving" if stopped else health


async def with_status(clients: Clients, message: loader_pb2.Model) -> views.ModelWithStatus:
    """Return the model's view with its status from the monitor, if the monitor answers."""
    view: views.ModelWithStatus = {**messages.model(message), "status": None}
    if message.instances:
        request = monitor_pb2.GetStatusRequest(name=message.name)
        try:
            answer = await clients.call(
                "monitor", clients.monitor.GetStatus, request, timeout=_STATUS_TIMEOUT
            )
            view["status"] = messages.status(answer.status)
        except (CorralError, Failure):
            pass
    return view


async def _models(clients: Clients, *, everything: bool) -> list[loader_pb2.Model]:
    try:
        return await pages.models(clients, () if everything else model_changes.ACTIVE)
    except (CorralError, Failure):
        return []


def _services_table(clients: Clients, out: Output, health: dict[Service, str], http: str) -> None:
    rows: list[tuple[str | tuple[str, str], ...]] = [
        ((s, "bold"), (health[s], _HEALTH_STYLES[health[s]]), clients.addresses[s].address)
        for s in SERVICES
    ]
    if http:
        rows.append((("prometheus", "bold"), "", f"http://{http}/metrics"))
    out.table([Column("SERVICE"), Column("HEALTH"), Column("ADDRESS")], rows)


def _models_table(out: Output, overview: Overview) -> None:
    if not overview.models:
        if overview.health["loader"] == "serving":
            out.line()
            out.line("no model is loaded", "dim")
        return
    waiting = (
        {one["model"]: one for one in overview.capacity["waiting"]} if overview.capacity else {}
    )
    out.line()
    out.table(
        [
            Column("MODEL"),
            Column("STATE"),
            Column("BACKEND", rank=3),
            Column("MEMORY", right=True, rank=1),
            Column("CPU", right=True, rank=5),
            Column("CALLS", right=True, rank=2),
            Column("IDLE", right=True, rank=4),
            Column("UP", right=True, rank=6),
            Column("NOTE", flexible=True),
        ],
        [_row(view, waiting) for view in overview.models],
    )


def _row(
    view: views.ModelWithStatus, waiting: dict[str, views.Waiting]
) -> tuple[str | tuple[str, str], ...]:
    status, instance = view["status"], view["instance"]
    process = status["process"] if status else None
    ready = instance["ready_time"] if instance else None
    measured = text.size(status["memory_bytes"]) if status and status["memory_bytes"] else ""
    return (
        (view["name"], "bold"),
        (view["state"], phrases.STATE_STYLES.get(view["state"], "")),
        view["backend"],
        measured or phrases.memory(view["memory"]),
        f"{process['cpu_percent']:.0f}%" if process else "",
        phrases.calls(view),
        phrases.idle(view),
        text.span(time.time() - messages.epoch(ready)) if ready else "",
        phrases.note(view, waiting),
    )
