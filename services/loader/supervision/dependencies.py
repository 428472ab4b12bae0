"""What all supervisors share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from services.common.backoff import Backoff
from services.common.tasks import Background
from services.loader.admission.meter import CallMeter
from services.loader.backends.catalog import Backend
from services.loader.instances.instance import Instance
from services.loader.memory.reservation import Reservation
from services.loader.models.catalog import ModelEntry
from services.loader.scheduling.scheduler import Scheduler

from .runner import Activity, Options, Starter, Timeouts


@dataclass(frozen=True, slots=True)
class Services:
    """What all supervisors share."""

    starter: Starter
    find_backend: Callable[[str], Backend]
    models_path: Path
    timeouts: Timeouts
    backoff: Callable[[], Backoff]
    options: Options
    scheduler: Scheduler
    estimate: Callable[[ModelEntry, str, bool], Reservation]
    """What a model needs with a backend; with True, more than it had the last time. Blocking."""
    pinned: Callable[[ModelEntry], bool]
    activity: Activity
    released: Callable[[Instance], Awaitable[None]]
    queue_size: Callable[[], int]
    calls: CallMeter
    tasks: Background
