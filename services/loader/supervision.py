"""What all supervisors share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from services.common.backoff import Backoff
from services.common.tasks import Background

from .admission import CallMeter
from .backend_catalog import Backend
from .instance import Instance
from .ledger import Reservation
from .model_catalog import ModelEntry
from .runner import Activity, Starter, Timeouts
from .scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Services:
    """What all supervisors share."""

    starter: Starter
    find_backend: Callable[[str], Backend]
    models_path: Path
    timeouts: Timeouts
    backoff: Callable[[], Backoff]
    scheduler: Scheduler
    estimate: Callable[[ModelEntry, str, bool], Reservation]
    """What a model needs with a backend; with True, more than it had the last time. Blocking."""
    pinned: Callable[[ModelEntry], bool]
    activity: Activity
    released: Callable[[Instance], Awaitable[None]]
    queue_size: Callable[[], int]
    calls: CallMeter
    tasks: Background
