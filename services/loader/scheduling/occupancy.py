"""A loaded model as the scheduler and the watchdogs see it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from services.loader.instances.instance import Instance
from services.loader.lifecycle.events import Cause, StopReason
from services.loader.lifecycle.state import Phase
from services.loader.models.catalog import ModelEntry

from .eviction import Occupant

_MOMENT = 1.0
"""Seconds after a call within which another is likely."""

_THRASHING = 60.0
"""Seconds: a model that is needed again this soon after its eviction was evicted too early."""


@dataclass(frozen=True, slots=True)
class LastUnload:
    """Why and when a model was unloaded the last time."""

    reason: StopReason
    time: float
    """Seconds since the epoch."""
    forced: bool


def occupant(
    name: str,
    phase: Phase,
    entry: ModelEntry,
    instance: Instance | None,
    *,
    memory: Mapping[str, int],
    wanted: bool,
    pinned: bool,
    counts: bool,
    last_unload: LastUnload | None,
) -> Occupant:
    """Return the scheduler's view of a model that holds memory; `wanted`: calls or loads wait for it."""
    now = time.monotonic()
    ready = instance is not None and instance.ready_since > 0
    idle = now - instance.calls.idle_since if instance and ready else 0.0
    return Occupant(
        name=name,
        settled=phase is Phase.READY,
        leaving=phase in (Phase.DRAINING, Phase.STOPPING),
        busy=bool(instance and instance.calls.holds) or wanted,
        pinned=pinned,
        counts=counts,
        groups=frozenset(entry.config.concurrency_groups),
        memory=memory,
        idle=idle,
        residence=now - instance.ready_since if instance and ready else 0.0,
        load_seconds=instance.load_seconds if instance else 0.0,
        came_back=_came_back(instance, last_unload),
        in_demand=bool(instance and instance.calls.total and idle < _MOMENT),
    )


def _came_back(instance: Instance | None, unload: LastUnload | None) -> bool:
    """Whether the model had to be loaded again soon after it was evicted."""
    if unload is None or instance is None or unload.reason.cause is not Cause.EVICTED:
        return False
    return instance.started - unload.time < _THRASHING
