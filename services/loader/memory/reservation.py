"""The memory reserved for a model, and how much of each device is reserved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from services.loader.devices.devices import Device


class Basis(Enum):
    """Where a figure comes from; the names are those of the contract."""

    ESTIMATED = "estimated"
    CONFIGURED = "configured"
    LEARNED = "learned"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Reservation:
    """The memory reserved for a model, in bytes by device."""

    memory: Mapping[str, int] = field(default_factory=dict)
    basis: Basis = Basis.ESTIMATED
    options: Mapping[str, Any] | None = None
    """The options for which this memory is needed, by the field of LoadModel's request; None if unknown."""
    backend: str = ""
    """The backend that the options are for; empty if they are unknown."""

    def options_for(self, backend: str) -> Mapping[str, Any] | None:
        """Return the options; None if they are for another backend, as an alias may change meanwhile."""
        return self.options if backend == self.backend else None


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """A device, and the bytes of it that are reserved."""

    device: Device
    reserved: int
    budget: int
    """Bytes that all models may have together; 0 means no limit except the device's own."""
