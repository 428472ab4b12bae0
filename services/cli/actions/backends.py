"""The loader's backends, usable or not."""

from __future__ import annotations

import difflib

from services.cli.client.clients import Clients
from services.cli.display import loader_messages, messages, phrases, text, views
from services.cli.display.output import Column, Output
from services.cli.failures import Failure
from services.cli.models import pages


async def show_all(clients: Clients, out: Output) -> None:
    """List the backends in the order in which their folders are searched."""
    shown = [loader_messages.backend(one) for one in await pages.backends(clients)]
    if out.as_json:
        out.emit({"backends": shown, "total": len(shown)})
        return
    if not shown:
        out.note("no backends: give `corral up` a folder of backends with --backends-path")
        return
    out.table(
        [
            Column("NAME"),
            Column("USABLE"),
            Column("VERSION", rank=2),
            Column("FROM", rank=4),
            Column("REQUIRES", rank=5),
            Column("FORMATS", rank=3),
            Column("USE", rank=6),
            Column("CALLS", right=True, rank=7),
            Column("NOTE", flexible=True),
        ],
        [
            (
                (view["name"], "bold"),
                ("yes", "green") if view["usable"] else ("no", "red"),
                view["version"],
                _source(view),
                ", ".join(view["requires"]),
                ", ".join(view["formats"]),
                ", ".join(view["usecases"]),
                str(view["max_concurrent_calls"] or ""),
                _note(view),
            )
            for view in shown
        ],
    )


async def show(clients: Clients, out: Output, name: str) -> None:
    """Show one backend in detail, by its name or by an alias."""
    shown = [loader_messages.backend(one) for one in await pages.backends(clients)]
    wanted = messages.bare(name)
    view = next((one for one in shown if one["name"] == wanted), None) or next(
        (one for one in shown if wanted in one["aliases"]), None
    )
    if view is None:
        known = [one["name"] for one in shown] + [
            alias for one in shown for alias in one["aliases"]
        ]
        near = difflib.get_close_matches(wanted, known, n=1)
        near += [other for other in known if wanted.lower() in other.lower()]
        meant = f"did you mean {near[0]}? " if near else ""
        raise Failure(
            f"there is no backend {wanted!r}",
            f"{meant}list all with `corral backends`",
            reason="BACKEND_NOT_FOUND",
        )
    if out.as_json:
        out.emit(view)
        return
    calls = view["max_concurrent_calls"]
    facts = [
        ("backend", view["name"], ""),
        ("usable", "yes" if view["usable"] else "no", "green" if view["usable"] else "red"),
        ("why not", view["error"], "red"),
        ("why", view["explanation"], ""),
        ("stands for", view["chosen"], ""),
        ("aliases", ", ".join(view["aliases"]), ""),
        ("version", view["version"], ""),
        ("from", _source(view), ""),
        ("requires", ", ".join(view["requires"]), ""),
        ("formats", ", ".join(view["formats"]), ""),
        ("use", ", ".join(view["usecases"]), ""),
        ("at once", text.plural(calls, "call") if calls else "", ""),
        ("program", view["run_file"], ""),
        ("address", view["address"], ""),
        ("gallery", view["gallery_url"], ""),
        ("installed", phrases.when(view["install_time"]), ""),
        ("revision", view["revision"], ""),
    ]
    out.facts(fact for fact in facts if fact[1])


def _source(view: views.Backend) -> str:
    return "" if view["source"] == "unspecified" else str(view["source"])


def _note(view: views.Backend) -> str:
    if view["error"]:
        return text.clip(view["error"], 200)
    aliases = f"also {', '.join(view['aliases'])}" if view["aliases"] else ""
    stands = f"stands for {view['chosen']}" if view["chosen"] else ""
    parts = (stands, aliases, text.clip(view["explanation"], 200))
    return " · ".join(part for part in parts if part)
