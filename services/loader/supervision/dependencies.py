"""The dependencies that all supervisors share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.common.backoff import Backoff
from services.common.tasks import Background
from services.loader.admission.meter import CallMeter
from services.loader.backends.backend import Backend
from services.loader.instances.instance import Instance
from services.loader.live_settings import LiveSettings
from services.loader.memory.reservation import Reservation
from services.loader.models.entry import ModelEntry
from services.loader.scheduling.scheduler import Scheduler

from .runner import Activity, Options, Starter, Timeouts


class Backends(Protocol):
    """The installed backends."""

    def find(self, name: str) -> Backend:
        """Return the backend. Raises BackendNotFoundError."""
        ...


class Ledger(Protocol):
    """The memory that models need."""

    def reserve(self, entry: ModelEntry, backend: Backend, *, more: bool) -> Reservation:
        """Return the memory to reserve; with `more`, more than the last time. Blocking."""
        ...

    async def released(self, instance: Instance) -> None:
        """Return when the memory of an instance that has ended is free again."""
        ...


class Pinned(Protocol):
    """The pins of models."""

    def pinned(self, name: str, configured: bool) -> bool:
        """Whether the model is pinned; `configured` is `pinned` in its configuration."""
        ...


@dataclass(frozen=True, slots=True)
class SupervisorDependencies:
    """The dependencies that all supervisors share."""

    starter: Starter
    backends: Backends
    models_path: Path
    timeouts: Timeouts
    settings: LiveSettings
    backoff_maximum: float
    """The longest wait after failed loads, in seconds."""
    options: Options
    scheduler: Scheduler
    ledger: Ledger
    pins: Pinned
    activity: Activity
    calls: CallMeter
    tasks: Background

    def backoff(self) -> Backoff:
        """Return the back-off after failed loads, from the settings in force."""
        initial = self.settings.now.model_load_failure_cooldown
        return Backoff(initial=initial, maximum=max(initial, self.backoff_maximum))
