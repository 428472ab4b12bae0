"""What all models look like to others now."""

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
    """The address of a model at which it looks like a backend."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where clients reach it now."""
        ...


class Views:
    """Makes the pictures of models; of those that rest it keeps them."""

    def __init__(self, models: ModelCatalog, fleet: Fleet, pins: Pins) -> None:
        """Begin without endpoints; see `endpoint_is`."""
        self._models = models
        self._fleet = fleet
        self._pins = pins
        self._endpoints: dict[str, tuple[ModelEndpoint | None, str]] = {}
        self._resting: dict[str, tuple[ModelEntry, ModelView]] = {}
        """Pictures of models that nobody asked for, which change only with their configuration or a pin."""

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
        """Take note that a model looks otherwise now, whatever its configuration is."""
        self._resting.pop(name, None)

    def of(self, entry: ModelEntry) -> ModelView:
        """Return the picture of a model."""
        supervisor = self._fleet.get(entry.name)
        if supervisor is not None:
            return self._picture(entry, supervisor)
        kept = self._resting.get(entry.name)
        if kept is None or kept[0] is not entry:
            kept = (entry, self._picture(entry, None))
            self._resting[entry.name] = kept
        return kept[1]

    def get(self, name: str) -> ModelView:
        """Return one model, also one that runs though its file is gone. Raises ModelNotFoundError."""
        supervisor = self._fleet.get(name)
        try:
            entry = self._models.find(name)
        except ModelNotFoundError:
            if supervisor is None or supervisor.state.phase in RESTING:
                raise
            entry = supervisor.entry or ModelEntry(name)
        return self.of(entry)

    def select(self, condition: ModelFilter) -> list[ModelView]:
        """Return the models that match, sorted by name; those that run though their file is gone too."""
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
