"""One model in detail: its instances, failures, memory and effective options."""

from __future__ import annotations

from typing import Any

from services.cli.client.clients import Clients
from services.cli.display import loader_messages, phrases, text, views
from services.cli.display.output import Column, Output
from services.cli.models import lookup
from services.cli.status import capacity

from . import overview

Fact = tuple[str, str, str]


async def gather(clients: Clients, name: str) -> views.ModelDetails:
    """Return all that the loader and the monitor know about a model."""
    answer = await lookup.get_whole(clients, name)
    view = await overview.with_status(clients, answer.model)
    return {
        **view,
        "health": await overview.health_of(clients, "loader", f"models/{view['name']}"),
        "effective_options": [loader_messages.option(one) for one in answer.effective_options],
        "waiting": await _waiting(clients, view),
    }


async def _waiting(clients: Clients, view: views.Model) -> views.Waiting | None:
    if view["state"] != "waiting":
        return None
    known = await capacity.query(clients)
    waiting = known["waiting"] if known else []
    return next((one for one in waiting if one["model"] == view["name"]), None)


def write(out: Output, view: views.ModelDetails, *, options: bool) -> None:
    """Write a model's facts for people."""
    out.facts(fact for fact in _facts(view) if fact[1])
    if not options:
        return
    out.line()
    if not view["effective_options"]:
        out.line("the effective options are not known", "dim")
        return
    out.table(
        [
            Column("OPTION"),
            Column("VALUE", flexible=True),
            Column("FROM"),
            Column("WHERE", flexible=True, style="dim"),
        ],
        [
            ((one["field"], "bold"), _plain(one["value"]), _words(one["source"]), one["detail"])
            for one in view["effective_options"]
        ],
    )


def _facts(view: views.ModelDetails) -> list[Fact]:
    waiting = view["waiting"]
    unloaded = view["last_unload"]["message"] if view["last_unload"] else ""
    note = view["state_message"] if view["state_message"] != unloaded else ""
    lines = [
        ("model", view["name"], ""),
        ("state", view["state"], phrases.STATE_STYLES.get(view["state"], "")),
        ("note", note, ""),
        ("waits", phrases.place_of(waiting) if waiting else "", "yellow"),
        ("config error", view["config_error"], "red"),
        ("next load", phrases.retry(view["retry_time"]).removeprefix("next try "), ""),
        ("since", phrases.when(view["state_time"]), ""),
        ("health", view["health"], "green" if view["health"] == "serving" else ""),
        ("backend", view["backend"], ""),
        ("file", view["model_file"], ""),
        ("config", view["config_file"], ""),
        ("use", ", ".join(view["usecases"]), ""),
        ("groups", ", ".join(view["concurrency_groups"]), ""),
        *(("endpoint", address, "") for address in view["endpoints"]),
        ("no endpoint", view["endpoint_error"], "red"),
        ("pinned", "yes" if view["pinned"] else "", ""),
        ("crashes", phrases.crashes(view), "red"),
    ]
    lines += [("failed", phrases.failure(one), "red") for one in view["failures"]]
    lines.append(("last unload", phrases.unload(view), ""))
    lines += _load(view)
    several = len(view["instances"]) > 1
    for at, instance in enumerate(view["instances"]):
        if several:
            lines.append((f"instance {at + 1}", instance["uid"] or str(at + 1), "bold"))
        lines += _instance(instance)
    lines += _memory(view)
    return lines


def _load(view: views.ModelDetails) -> list[Fact]:
    """Return how busy a model is; empty values are not shown."""
    limit, queued = view["max_concurrent_calls"], view["queued_calls"]
    return [
        ("at once", text.plural(limit, "call") if limit else "", ""),
        ("queued", text.plural(queued, "call") if queued else "", "yellow"),
        ("idle", phrases.idle(view), ""),
    ]


def _instance(instance: views.Instance) -> list[Fact]:
    load_seconds = instance["load_seconds"]
    loaded = "" if load_seconds is None else text.duration(load_seconds)
    taken = "taken over from the previous loader"
    return [
        ("address", instance["address"], ""),
        ("process", f"pid {instance['pid']}" if instance["pid"] else "elsewhere", ""),
        ("up", phrases.when(instance["ready_time"]).removesuffix(" ago"), ""),
        ("loaded in", loaded, ""),
        ("adopted", taken if instance["adopted"] else "", ""),
        ("calls", f"{instance['active_calls']} now, {instance['total_calls']} in all", ""),
        ("last used", phrases.when(instance["last_used_time"]), ""),
        ("load message", instance["load_message"], ""),
    ]


def _memory(view: views.ModelDetails) -> list[Fact]:
    status = view["status"]
    process = status["process"] if status else None
    lines: list[Fact] = []
    if status:
        source = "reported by the backend" if status["source"] == "backend" else "of its processes"
        lines += [
            ("activity", status["activity"], ""),
            ("memory", f"{text.size(status['memory_bytes'])} {source}", ""),
        ]
        parts = sorted(status["memory_breakdown"].items())
        lines += [(f"  {part}", text.size(count), "") for part, count in parts]
    lines.append(("reserved" if status else "memory", _reserved(view), ""))
    if process:
        threads = text.plural(process["thread_count"], "thread")
        lines += [
            ("resident", text.size(process["rss_bytes"]), ""),
            ("processor", f"{process['cpu_percent']:.0f}% (100% is one core)", ""),
            ("processes", f"{process['process_count']}, {threads}", ""),
        ]
        gpus = sorted(process["gpu_memory_bytes"].items())
        lines += [(gpu, text.size(count), "") for gpu, count in gpus]
    return lines


def _reserved(view: views.ModelDetails) -> str:
    return ", ".join(
        f"{text.size(one['bytes'])} on {one['device']} ({one['basis']})" for one in view["memory"]
    )


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _words(source: str) -> str:
    return source.replace("_", " ")
