"""The loader's health service: one entry for each model, and those of the loader's own services."""

from __future__ import annotations

from services.common.names import MODELS, resource_name
from services.common.rpc.health import HealthServicer
from services.loader.gateway.methods import SERVICE as DATA_SERVICE
from services.loader.views.model import ModelView

from .servicer import SERVICE


class LoaderHealth:
    """Keeps the health service up to date."""

    def __init__(self, health: HealthServicer) -> None:
        """Set the entries of this health service."""
        self._health = health

    def changed(self, name: str, model: ModelView | None) -> None:
        """Set the health of a model; None removes it."""
        if model is None:
            self._health.forget(resource_name(MODELS, name))
        else:
            ready = model.state == "READY"
            self._health.set(resource_name(MODELS, name), ready, model.message or model.state)

    def drained(self) -> None:
        """Report the loader's services as not serving."""
        for name in (SERVICE, DATA_SERVICE.full_name):
            self._health.set(name, False, "the loader drains")
