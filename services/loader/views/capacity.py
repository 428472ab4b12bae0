"""What the loader tells of what it has to give, and of what a load would be."""

from __future__ import annotations

from dataclasses import dataclass

from services.loader.memory.reservation import DeviceUsage
from services.loader.models.catalog import ModelEntry
from services.loader.models.source_lines import Lines
from services.loader.scheduling.scheduler import RoomRequest


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is to give, and who waits for it. A limit of 0 means none."""

    rooms: tuple[DeviceUsage, ...]
    active_models: int
    max_active_models: int
    loads: int
    max_loads: int
    calls: int
    max_calls: int
    waiting: tuple[RoomRequest, ...]


@dataclass(frozen=True, slots=True)
class NextLoad:
    """What the next load of a model would be."""

    entry: ModelEntry
    backend: str
    """The first one to be tried."""
    lines: Lines | None
    """The lines of the model's configuration, if it has any."""
