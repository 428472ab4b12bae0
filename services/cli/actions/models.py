"""Lists of models: those of the loader, those on disk, those that the galleries offer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from corral.gallery.v1 import gallery_pb2
from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import messages, phrases, text, views
from services.cli.display.output import Column, Output
from services.cli.failures import Failure
from services.common.errors import CorralError

_PAGE: Final = 1000
# Memory is optional in a list: it must not delay the list.
_MEMORY_TIMEOUT: Final = 3.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The models to list, and how many; empty and 0 mean all."""

    search: str = ""
    tag: str = ""
    usecase: str = ""
    backend: str = ""
    installed: bool | None = None
    limit: int = 0

    @property
    def narrowed(self) -> bool:
        """Whether a filter is set."""
        return bool(self.search or self.tag or self.usecase or self.backend or self.installed)


async def list_known(clients: Clients, out: Output, wanted: Wanted) -> None:
    """List the loader's models, loaded or not."""
    only = loader_pb2.ModelFilter(
        backend=wanted.backend, usecase=wanted.usecase, name_contains=wanted.search
    )

    async def page(size: int, token: str) -> tuple[list[loader_pb2.Model], str, int]:
        answer = await clients.call(
            "loader",
            clients.loader.ListModels,
            loader_pb2.ListModelsRequest(page_size=size, page_token=token, filter=only),
        )
        return list(answer.models), answer.next_page_token, answer.total_size

    models, total = await _all(page, wanted.limit)
    known = [messages.model(model) for model in models]
    shown: list[views.ListedModel] = [
        {**view, "memory_bytes": memory}
        for view, memory in zip(known, await memory_of(clients, known), strict=True)
    ]
    if out.as_json:
        out.emit({"models": shown, "total": total})
        return
    if not shown:
        _nothing(
            out,
            wanted,
            "no models here yet: see what you can install with `corral models --available`",
        )
        return
    out.table(
        [
            Column("NAME"),
            Column("STATE"),
            Column("BACKEND"),
            Column("MEMORY", right=True),
            Column("USE"),
            Column("NOTE", flexible=True),
        ],
        [
            (
                (view["name"], "bold"),
                (view["state"], phrases.STATE_STYLES.get(view["state"], "")),
                view["backend"],
                text.size(view["memory_bytes"]) if view["memory_bytes"] else "",
                ", ".join(view["usecases"]),
                phrases.note(view),
            )
            for view in shown
        ],
    )
    _rest(out, len(shown), total)


async def list_installed(clients: Clients, out: Output, wanted: Wanted) -> None:
    """List the models in the models folder, with their sizes and origins."""
    only = gallery_pb2.InstalledModelFilter(
        backend=wanted.backend, usecase=wanted.usecase, name_contains=wanted.search
    )

    async def page(size: int, token: str) -> tuple[list[gallery_pb2.InstalledModel], str, int]:
        answer = await clients.call(
            "gallery",
            clients.gallery.ListInstalledModels,
            gallery_pb2.ListInstalledModelsRequest(page_size=size, page_token=token, filter=only),
        )
        return list(answer.models), answer.next_page_token, answer.total_size

    models, total = await _all(page, wanted.limit)
    shown = [messages.installed(model) for model in models]
    if out.as_json:
        out.emit({"models": shown, "total": total})
        return
    if not shown:
        _nothing(
            out, wanted, "nothing installed yet: see what you can install with `corral models -a`"
        )
        return
    out.table(
        [
            Column("NAME"),
            Column("SIZE", right=True),
            Column("BACKEND"),
            Column("USE"),
            Column("FROM"),
            Column("FILE", flexible=True),
        ],
        [
            (
                (view["name"], "bold"),
                text.size(view["size_bytes"]) if view["size_bytes"] else "",
                view["backend"],
                ", ".join(view["usecases"]),
                view["entry"] or ("loose file" if view["loose"] else ""),
                view["model_file"],
            )
            for view in shown
        ],
    )
    _rest(out, len(shown), total)


async def list_available(clients: Clients, out: Output, wanted: Wanted) -> None:
    """List what the galleries offer."""
    only = gallery_pb2.ModelEntryFilter(
        tag=wanted.tag,
        usecase=wanted.usecase,
        backend=wanted.backend,
        installed=wanted.installed,
    )
    missing: set[str] = set()

    async def page(size: int, token: str) -> tuple[list[gallery_pb2.ModelEntry], str, int]:
        answer: Any
        if wanted.search:
            answer = await clients.call(
                "gallery",
                clients.gallery.SearchModelEntries,
                gallery_pb2.SearchModelEntriesRequest(
                    query=wanted.search, page_size=size, page_token=token, filter=only
                ),
            )
        else:
            answer = await clients.call(
                "gallery",
                clients.gallery.ListModelEntries,
                gallery_pb2.ListModelEntriesRequest(page_size=size, page_token=token, filter=only),
            )
        missing.update(name.removeprefix("galleries/") for name in answer.unreachable)
        return list(answer.entries), answer.next_page_token, answer.total_size

    entries, total = await _all(page, wanted.limit)
    shown = [messages.entry(entry) for entry in entries]
    if out.as_json:
        out.emit({"models": shown, "total": total, "unavailable_galleries": sorted(missing)})
        return
    if missing:
        out.note(f"warning: could not read the gallery {', '.join(sorted(missing))}", "yellow")
    if not shown:
        _nothing(out, wanted, "the galleries offer nothing")
        return
    several = len({view["gallery"] for view in shown}) > 1
    out.table(
        [
            Column("NAME"),
            *([Column("GALLERY")] if several else []),
            Column("SIZE", right=True),
            Column("BACKEND"),
            Column("USE"),
            Column("DESCRIPTION", flexible=True, style="dim"),
        ],
        [
            (
                (view["name"], "bold"),
                *([view["gallery"]] if several else []),
                text.size(view["size_bytes"]) if view["size_bytes"] else "",
                view["backend"],
                ", ".join(view["usecases"]),
                ("installed · " if view["installed"] else "") + text.clip(view["description"], 100),
            )
            for view in shown
        ],
    )
    _rest(out, len(shown), total)
    if out.stdout.is_terminal:
        out.note("\nInstall one with `corral install NAME`.", "dim")


async def memory_of(clients: Clients, shown: list[views.Model]) -> list[int | None]:
    """Return the memory of each loaded model from the monitor; None if it has no answer."""
    from corral.monitor.v1 import monitor_pb2

    async def one(view: views.Model) -> int | None:
        if view["state"] != "ready":
            return None
        try:
            answer = await clients.call(
                "monitor",
                clients.monitor.GetStatus,
                monitor_pb2.GetStatusRequest(name=view["name"]),
                timeout=_MEMORY_TIMEOUT,
            )
        except (CorralError, Failure):
            return None
        return int(answer.status.memory_bytes) or None

    return await asyncio.gather(*map(one, shown))


async def _all(
    page: Callable[[int, str], Awaitable[tuple[list[Any], str, int]]], limit: int
) -> tuple[list[Any], int]:
    """Collect pages until the last one or the limit; also return the total number."""
    found: list[Any] = []
    token, total = "", 0
    while True:
        size = min(limit - len(found), _PAGE) if limit else _PAGE
        items, token, total = await page(size, token)
        found += items
        if not token or (limit and len(found) >= limit):
            return found[: limit or None], total


def _nothing(out: Output, wanted: Wanted, empty: str) -> None:
    out.note("nothing matches" if wanted.narrowed else empty)


def _rest(out: Output, shown: int, total: int) -> None:
    if shown < total:
        out.note(f"{shown} of {total}; see more with --limit", "dim")
