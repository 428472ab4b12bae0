"""The current views of all models."""

from __future__ import annotations

from typing import Protocol

from services.common.errors import ModelNotFoundError
from services.loader.lifecycle.state import RESTING
from services.loader.models.catalog import ModelCatalog, ModelEntry
from services.loader.models.pins import Pins
from services.loader.supervision.fleet import Fleet
from services.loader.supervision.supervisor import Supervisor

from .model import ModelFilter, ModelView, view


class ModelEndpoint(Protocol):
    """The endpoint of a model, at which it behaves like a backend."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses at which clients reach it now."""
        ...


class Views:
    """Creates the views of models; those of models that were never requested are cached."""

    def __init__(self, models: ModelCatalog, fleet: Fleet, pins: Pins) -> None:
        """There are no endpoints at first; see `endpoint_is`."""
        self._models = models
        self._fleet = fleet
        self._pins = pins
        self._endpoints: dict[str, tuple[ModelEndpoint | None, str]] = {}
        self._resting: dict[str, tuple[ModelEntry, ModelView]] = {}
        """Views of models that were never requested, which change only with configuration, pin or endpoint."""

    def pinned(self, entry: ModelEntry) -> bool:
        """Whether the model is pinned."""
        return self._pins.pinned(entry.name, entry.config.pinned)

    def endpoint_is(self, name: str, endpoint: ModelEndpoint | None, error: str) -> None:
        """Set a model's endpoint, and why it lacks an address that it should have."""
        self._endpoints[name] = (endpoint, error)
        if endpoint is None and not error:
            del self._endpoints[name]
        self.forget(name)

    def forget(self, name: str) -> None:
        """Drop the cached view of a model that changed in other ways than its configuration."""
        self._resting.pop(name, None)

    def of(self, entry: ModelEntry) -> ModelView:
        """Return the view of a model."""
        supervisor = self._fleet.get(entry.name)
        if supervisor is not None:
            return self._picture(entry, supervisor)
        kept = self._resting.get(entry.name)
        if kept is None or kept[0] is not entry:
            kept = (entry, self._picture(entry, None))
            self._resting[entry.name] = kept
        return kept[1]

    def get(self, name: str) -> ModelView:
        """Return one model, even if it runs but its file is gone. Raises ModelNotFoundError."""
        supervisor = self._fleet.get(name)
        try:
            entry = self._models.find(name)
        except ModelNotFoundError:
            if supervisor is None or supervisor.state.phase in RESTING:
                raise
            entry = supervisor.entry or ModelEntry(name)
        return self.of(entry)

    def select(self, condition: ModelFilter) -> list[ModelView]:
        """Return the matching models, sorted by name, including those that run but whose file is gone."""
        entries = self._models.models()
        views = [self.of(entry) for entry in entries.values()]
        gone = [
            self.of(supervisor.entry or ModelEntry(supervisor.name))
            for supervisor in self._fleet
            if supervisor.name not in entries and supervisor.state.phase not in RESTING
        ]
        if gone:
            views = sorted([*views, *gone], key=lambda model: model.name)
        return views if condition == ModelFilter() else list(filter(condition.matches, views))

    def _picture(self, entry: ModelEntry, supervisor: Supervisor | None) -> ModelView:
        endpoint, error = self._endpoints.get(entry.name, (None, ""))
        return view(
            entry,
            supervisor,
            pinned=self.pinned(entry),
            endpoints=endpoint.addresses if endpoint else (),
            endpoint_error=error,
        )
