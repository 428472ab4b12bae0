"""Requests to load one model: each starts a load, or joins the one in progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from services.common.errors import DeadlineTooShortError
from services.loader.admission.leases import Leases
from services.loader.admission.meter import ANYONE, Caller
from services.loader.instances.instance import Lease
from services.loader.lifecycle import events
from services.loader.lifecycle.state import RESTING, Lifecycle, Phase
from services.loader.models.catalog import ModelEntry

from .backoffs import Backoffs


class Loadable(Protocol):
    """The part of a supervisor that load requests need."""

    state: Lifecycle
    entry: ModelEntry | None
    leases: Leases
    backoffs: Backoffs

    @property
    def loading(self) -> bool:
        """Whether a load is in progress."""


class LoadRequests:
    """Requests for one model, which may not be loaded yet."""

    def __init__(self, model: Loadable, post: Callable[[events.Event], None]) -> None:
        """`post` is called with each event that a request causes."""
        self._model = model
        self._post = post

    async def acquire(
        self,
        entry: ModelEntry,
        candidates: tuple[str, ...],
        *,
        calls: bool,
        caller: Caller = ANYONE,
    ) -> Lease:
        """Return a lease on the ready model, loading it first; callers of the same load share it.

        With `calls` the lease is for a call, which takes one of the model's slots and counts towards its
        limits; without, it only holds the model. Cancelling one caller does not cancel the load. Raises
        LoadBackoffError, QueueFullError, DeadlineTooShortError, or what the load failed with.
        """
        model = self._model
        if lease := model.leases.take(calls=calls, client=caller.client):
            return lease
        usable = self._usable(entry, candidates)
        self._take_entry(entry, usable)
        try:
            joining = model.leases.join(caller if calls else None)
        except DeadlineTooShortError:
            # Otherwise a client with a short deadline would never find the model loaded.
            self._post(events.LoadRequested(usable))
            raise
        self._post(events.LoadRequested(usable))
        return await joining

    def begin(self, entry: ModelEntry, candidates: tuple[str, ...]) -> None:
        """Start a load without waiting for it. Raises LoadBackoffError."""
        if self._model.state.phase is Phase.READY:
            return
        usable = self._usable(entry, candidates)
        self._take_entry(entry, usable)
        self._post(events.LoadRequested(usable))

    def _take_entry(self, entry: ModelEntry, candidates: tuple[str, ...]) -> None:
        """Load the model as it is configured now, unless its backend has started."""
        model = self._model
        if model.loading or model.state.phase is Phase.READY:
            return
        before, model.entry = model.entry, entry
        if before is not None and before.revision != entry.revision:
            model.leases.forget_pace()
        if model.state.phase is Phase.WAITING and before and before.revision != entry.revision:
            self._post(events.Changed())
            self._post(events.Reconfigured(candidates))

    def _usable(self, entry: ModelEntry, candidates: tuple[str, ...]) -> tuple[str, ...]:
        """Return the candidates that are not in back-off. Raises LoadBackoffError if all are."""
        model = self._model
        if model.state.phase not in RESTING:
            return candidates
        if model.entry is not None and model.entry.revision != entry.revision:
            self._post(events.Changed())
        return model.backoffs.usable(model.state, candidates)
