"""What all models look like to others now."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.common.errors import ModelNotFoundError
from services.loader.lifecycle.state import RESTING
from services.loader.models.catalog import ModelCatalog, ModelEntry
from services.loader.models.pins import Pins
from services.loader.supervision.supervisor import Supervisor

from .model import ModelFilter, ModelView, view


class Views:
    """Makes the pictures of models; of those that rest it keeps them."""

    def __init__(
        self, models: ModelCatalog, supervisors: Mapping[str, Supervisor], pins: Pins
    ) -> None:
        """`supervisors` by name, of the models that were ever asked for, as they are at any time."""
        self.endpoints_of: Callable[[str], tuple[tuple[str, ...], str]] = lambda name: ((), "")
        """A model's endpoints, and why it lacks one."""
        self._models = models
        self._supervisors = supervisors
        self._pins = pins
        self._resting: dict[str, tuple[ModelEntry, ModelView]] = {}
        """Pictures of models that nobody asked for, which change only with their configuration or a pin."""

    def pinned(self, entry: ModelEntry) -> bool:
        """Whether the model is pinned."""
        return self._pins.pinned(entry.name, entry.config.pinned)

    def forget(self, name: str) -> None:
        """Take note that a model looks otherwise now, whatever its configuration is."""
        self._resting.pop(name, None)

    def of(self, entry: ModelEntry) -> ModelView:
        """Return the picture of a model."""
        supervisor = self._supervisors.get(entry.name)
        if supervisor is not None:
            return self._picture(entry, supervisor)
        kept = self._resting.get(entry.name)
        if kept is None or kept[0] is not entry:
            kept = (entry, self._picture(entry, None))
            self._resting[entry.name] = kept
        return kept[1]

    def get(self, name: str) -> ModelView:
        """Return one model, also one that runs though its file is gone. Raises ModelNotFoundError."""
        supervisor = self._supervisors.get(name)
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
            self.of(supervisor.entry or ModelEntry(name))
            for name, supervisor in self._supervisors.items()
            if name not in entries and supervisor.state.phase not in RESTING
        ]
        if gone:
            views = sorted([*views, *gone], key=lambda model: model.name)
        return views if condition == ModelFilter() else list(filter(condition.matches, views))

    def _picture(self, entry: ModelEntry, supervisor: Supervisor | None) -> ModelView:
        endpoints, error = self.endpoints_of(entry.name)
        return view(
            entry,
            supervisor,
            pinned=self.pinned(entry),
            endpoints=endpoints,
            endpoint_error=error,
        )
