"""The loader's capacity (memory, models, loads, calls), and a preview of a model's next load."""

from __future__ import annotations

from dataclasses import dataclass

from services.loader.memory.reservation import DeviceUsage
from services.loader.models.catalog import ModelEntry
from services.loader.models.source_lines import Lines
from services.loader.scheduling.scheduler import RoomRequest


@dataclass(frozen=True, slots=True)
class Capacity:
    """The memory and limits of the loader, and the requests that wait. A limit of 0 means no limit."""

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
    """A preview of a model's next load."""

    entry: ModelEntry
    backend: str
    """The first backend to be tried."""
    lines: Lines | None
    """The lines of the model's configuration, if it has any."""
