"""Changes of models: as a stream that reconnects, and as the progress of a call that waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import RECONNECT_TIMEOUT, Clients
from services.cli.display import loader_messages, messages, phrases
from services.cli.display.output import Output
from services.cli.display.progress import Waiting, spinner
from services.cli.failures import Failure, Lost, Unreachable
from services.common.backoff import Backoff
from services.common.errors import CorralError, ShuttingDownError

_BACKOFF: Final = Backoff(initial=0.1, factor=2, maximum=2, jitter=0.2)
# How long a command waits for its watch to start, so that it misses no change.
_BEGIN_TIMEOUT: Final = 2.0
# Questions during a wait only explain it.
_EXPLAIN_TIMEOUT: Final = 2.0
_STATE = loader_pb2.Model.State
_CHANGE = loader_pb2.WatchModelsResponse
_WORDS: Final = {
    _STATE.STATE_WAITING: "waiting",
    _STATE.STATE_STARTING: "starting its backend",
    _STATE.STATE_LOADING: "loading",
    _STATE.STATE_DRAINING: "waiting for running calls",
    _STATE.STATE_STOPPING: "stopping",
}
# All states but unloaded, which thousands of models may have.
ACTIVE: Final = [state for state in _STATE.values() if state > _STATE.STATE_UNLOADED]


async def changes(
    clients: Clients, out: Output, only: loader_pb2.ModelFilter
) -> AsyncIterator[loader_pb2.WatchModelsResponse]:
    """Yield a snapshot and then each change; reconnect to a loader that comes back in time."""
    token, failures, answered = "", 0, None
    while True:
        request = loader_pb2.WatchModelsRequest(filter=only, resume_token=token)
        try:
            async for change in clients.stream("loader", clients.loader.WatchModels, request):
                failures, answered = 0, time.monotonic()
                token = change.resume_token or token
                yield change
        except (Lost, Unreachable, ShuttingDownError):
            if answered is None or time.monotonic() - answered > RECONNECT_TIMEOUT:
                raise
            if failures == 0:
                out.note("the loader does not answer; waiting for it to come back", "yellow")
        failures += 1
        await asyncio.sleep(_BACKOFF.delay(failures))


@asynccontextmanager
async def progress(clients: Clients, out: Output, name: str, title: str) -> AsyncIterator[None]:
    """Show a model's states, the evictions for it, and the time, while the block runs.

    `name` is the model's own name, not an alias.
    """
    with spinner(out, f"{title} …", clock=True) as waiting:
        begun = asyncio.Event()
        watcher = asyncio.create_task(_Progress(clients, out, name, title, waiting).run(begun))
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEGIN_TIMEOUT):
                    await begun.wait()
            yield
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher


class _Progress:
    """Shows how one model reaches another state."""

    def __init__(
        self, clients: Clients, out: Output, name: str, title: str, waiting: Waiting
    ) -> None:
        self._clients = clients
        self._out = out
        self._name = messages.bare(name)
        self._title = title
        self._waiting = waiting
        self._loading = False

    async def run(self, begun: asyncio.Event) -> None:
        loader = self._clients.loader
        only = loader_pb2.ModelFilter(states=ACTIVE)
        request = loader_pb2.WatchModelsRequest(filter=only)
        # Optional: if the watch fails, the awaited call fails with the reason.
        try:
            with suppress(CorralError, Failure):
                async for change in self._clients.stream("loader", loader.WatchModels, request):
                    if change.change_type == _CHANGE.CHANGE_TYPE_SNAPSHOT_END:
                        begun.set()
                    elif messages.bare(change.model.name) == self._name:
                        await self._show(change.model)
                    elif change.change_type == _CHANGE.CHANGE_TYPE_REMOVED and self._loading:
                        await self._show_eviction(change.model.name)
        finally:
            begun.set()

    async def _show(self, model: loader_pb2.Model) -> None:
        self._loading = model.state in (_STATE.STATE_WAITING, _STATE.STATE_STARTING)
        words = _WORDS.get(model.state)
        if not words:
            return
        if model.state == _STATE.STATE_WAITING:
            words = f"waiting, {await self._place() or model.state_message or 'for its turn'}"
        self._waiting.show(f"{self._title}: {words} …")

    async def _place(self) -> str:
        """Return what the model waits for and its place in the queue; empty if unknown."""
        with suppress(CorralError, Failure):
            answer = await self._clients.call(
                "loader",
                self._clients.loader.GetCapacity,
                loader_pb2.GetCapacityRequest(),
                timeout=_EXPLAIN_TIMEOUT,
            )
            for one in loader_messages.capacity(answer)["waiting"]:
                if one["model"] == self._name:
                    return phrases.place_of(one)
        return ""

    async def _show_eviction(self, name: str) -> None:
        """Write that another model was evicted, if it was for this one."""
        with suppress(CorralError, Failure):
            answer = await self._clients.call(
                "loader",
                self._clients.loader.GetModel,
                loader_pb2.GetModelRequest(name=name),
                timeout=_EXPLAIN_TIMEOUT,
            )
            last = messages.model(answer.model)["last_unload"]
            if last and last["cause"] == "evicted" and last["for_model"] == self._name:
                reason = f": {last['message']}" if last["message"] else ""
                self._out.note(f"{messages.bare(name)} made room{reason}")
