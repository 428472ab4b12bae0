"""The services' health, and what the loaded models do and use."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import typer
from grpc_health.v1 import health_pb2

from corral.loader.v1 import loader_pb2
from corral.monitor.v1 import monitor_pb2
from services.cli import endpoints, text, views
from services.cli.clients import Clients
from services.cli.endpoints import SERVICES, Service
from services.cli.failures import Failure, Unreachable
from services.cli.output import Column, Output
from services.common.config_fields import corral_home
from services.common.errors import CorralError

from . import load
from .models import STATE_STYLES, note_of

# A service that does not say within this time whether it is well, is not.
HEALTH_TIMEOUT: Final = 3.0
_STATUS_TIMEOUT: Final = 5.0
_PAGE: Final = 1000
_HEALTH_STYLES: Final = {"serving": "green", "not serving": "yellow", "unreachable": "red"}


async def show_all(clients: Clients, out: Output) -> None:
    """Show every service and every model that is not just lying on disk."""
    health = dict(
        zip(SERVICES, await asyncio.gather(*(_health(clients, s) for s in SERVICES)), strict=True)
    )
    models = await _models(clients) if health["loader"] != "unreachable" else []
    shown = await asyncio.gather(*(_with_status(clients, model) for model in models))
    running = endpoints.read(endpoints.endpoints_file(corral_home()))
    http = running.addresses.get("http", "") if running else ""
    if out.as_json:
        services = {
            s: {"address": clients.endpoints[s].address, "health": health[s]} for s in SERVICES
        }
        up = {"pid": running.pid, "http": http} if running else None
        out.emit({"services": services, "up": up, "models": list(shown)})
    else:
        _services_table(clients, out, health, http)
        _models_table(out, list(shown), loader_up=health["loader"] == "serving")
    if _unwell(clients, health):
        if all(state == "unreachable" for state in health.values()):
            raise Failure(
                "no service answers",
                "start them with `corral up`, or say where they are with --loader and the like",
                reason="SERVICE_UNREACHABLE",
            )
        raise typer.Exit(1)


async def show_model(clients: Clients, out: Output, name: str) -> None:
    """Show one model in detail."""
    message = await load.get(clients, name)
    view = await _with_status(clients, message)
    if out.as_json:
        out.emit(view)
        return
    state_style = STATE_STYLES.get(view["state"], "")
    out.facts(
        (name, value, state_style if name == "state" else "")
        for name, value in _details(view)
        if value
    )


def _details(view: views.View) -> list[tuple[str, str]]:
    instance: dict[str, Any] = view["instance"] or {}
    status: dict[str, Any] = view["status"] or {}
    process: dict[str, Any] = status.get("process") or {}
    lines = [
        ("model", view["name"]),
        ("state", view["state"]),
        ("note", view["state_message"]),
        ("config error", view["config_error"]),
        ("next load", _when(view["retry_time"])),
        ("since", _when(view["state_time"])),
        ("backend", view["backend"]),
        ("file", view["model_file"]),
        ("config", view["config_file"]),
        ("use", ", ".join(view["usecases"])),
        ("pinned", "yes" if view["pinned"] else ""),
    ]
    if instance:
        lines += [
            ("address", instance["address"]),
            ("process", f"pid {instance['pid']}" if instance["pid"] else "elsewhere"),
            ("loaded in", _maybe(text.duration, instance["load_seconds"])),
            ("calls", f"{instance['active_calls']} now, {instance['total_calls']} in all"),
            ("last used", _when(instance["last_used_time"])),
            ("backend says", instance["load_message"]),
        ]
    if status:
        source = "as the backend counts" if status["source"] == "backend" else "of its processes"
        lines += [
            ("activity", status["activity"]),
            ("memory", f"{text.size(status['memory_bytes'])} {source}"),
        ]
        lines += [(f"  {k}", text.size(v)) for k, v in sorted(status["memory_breakdown"].items())]
    if process:
        lines += [
            ("resident", text.size(process["rss_bytes"])),
            ("processor", f"{process['cpu_percent']:.0f}% (100% is one core)"),
            ("processes", f"{process['process_count']}, {process['thread_count']} threads"),
        ]
        lines += [(gpu, text.size(n)) for gpu, n in sorted(process["gpu_memory_bytes"].items())]
    return lines


async def _health(clients: Clients, service: Service) -> str:
    request = health_pb2.HealthCheckRequest()
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


async def _models(clients: Clients) -> list[loader_pb2.Model]:
    """Return the models that are loaded, on their way, or in trouble."""
    states = [s for s in loader_pb2.Model.State.values() if s > loader_pb2.Model.STATE_UNLOADED]
    found: list[loader_pb2.Model] = []
    token = ""
    while True:
        request = loader_pb2.ListModelsRequest(
            page_size=_PAGE, page_token=token, filter=loader_pb2.ModelFilter(states=states)
        )
        try:
            answer = await clients.call("loader", clients.loader.ListModels, request)
        except (CorralError, Failure):
            return found
        found += answer.models
        token = answer.next_page_token
        if not token:
            return found


async def _with_status(clients: Clients, message: loader_pb2.Model) -> views.View:
    """Return the model's view, with what the monitor says of it where that is to be had."""
    view = views.model(message)
    view["status"] = None
    if message.instances:
        request = monitor_pb2.GetStatusRequest(name=message.name)
        try:
            answer = await clients.call(
                "monitor", clients.monitor.GetStatus, request, timeout=_STATUS_TIMEOUT
            )
            view["status"] = views.status(answer.status)
        except (CorralError, Failure):
            pass
    return view


def _unwell(clients: Clients, health: dict[Service, str]) -> bool:
    """Tell whether something that should serve does not; a service nobody started is no trouble."""
    expected = [s for s in SERVICES if clients.endpoints[s].source != "default"]
    if any(health[service] != "serving" for service in expected):
        return True
    return not any(state == "serving" for state in health.values())


def _services_table(clients: Clients, out: Output, health: dict[Service, str], http: str) -> None:
    rows: list[tuple[str | tuple[str, str], ...]] = [
        ((s, "bold"), (health[s], _HEALTH_STYLES[health[s]]), clients.endpoints[s].address)
        for s in SERVICES
    ]
    if http:
        rows.append((("prometheus", "bold"), "", f"http://{http}/metrics"))
    out.table([Column("SERVICE"), Column("HEALTH"), Column("ADDRESS")], rows)


def _models_table(out: Output, shown: list[views.View], *, loader_up: bool) -> None:
    if not shown:
        if loader_up:
            out.line()
            out.line("no model is loaded", "dim")
        return
    out.line()
    out.table(
        [
            Column("MODEL"),
            Column("STATE"),
            Column("BACKEND"),
            Column("MEMORY", right=True),
            Column("CPU", right=True),
            Column("CALLS", right=True),
            Column("UP", right=True),
            Column("NOTE", flexible=True),
        ],
        [_row(view) for view in shown],
    )


def _row(view: views.View) -> tuple[str | tuple[str, str], ...]:
    status: dict[str, Any] = view["status"] or {}
    process: dict[str, Any] = status.get("process") or {}
    instance: dict[str, Any] = view["instance"] or {}
    ready = instance.get("ready_time")
    return (
        (view["name"], "bold"),
        (view["state"], STATE_STYLES.get(view["state"], "")),
        view["backend"],
        text.size(status["memory_bytes"]) if status.get("memory_bytes") else "",
        f"{process['cpu_percent']:.0f}%" if process else "",
        f"{instance['active_calls']} of {instance['total_calls']}" if instance else "",
        text.span(time.time() - views.epoch(ready)) if ready else "",
        note_of(view) if view["state"] in ("backoff", "failed") else "",
    )


def _when(moment: str | None) -> str:
    if not moment:
        return ""
    away = time.time() - views.epoch(moment)
    return f"{text.span(away)} ago" if away >= 0 else f"in {text.span(-away)}"


def _maybe(show: Any, value: float | None) -> str:
    return "" if value is None else str(show(value))
