"""The memory of models: predicted before a load, measured after it, remembered for the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from services.common.errors import DeadlineError
from services.common.process.logging import get_logger
from services.common.tasks import wait_until
from services.loader.backends.catalog import Backend
from services.loader.devices.budgets import WHOLE, parse_budget
from services.loader.devices.devices import RAM, Device, Devices
from services.loader.instances.instance import Instance
from services.loader.live_settings import Tunables
from services.loader.memory.learned import FootprintKey, Footprints
from services.loader.memory.reservation import Basis, DeviceUsage, Reservation
from services.loader.models.catalog import ModelEntry

from .eviction import Occupant

_log = get_logger(__name__)

MORE = 1.5
"""Factor on an estimate after a load that lacked memory: large enough to rarely need a third try."""

MOST = 0.9
"""The largest raised estimate to keep, as a fraction of the device's memory for all models."""

_LOOK = 0.2
"""Seconds for which a reading of the devices is reused by decisions made together."""


class Measure(Protocol):
    """Measures the memory of backends."""

    def measure(self, group: int, uid: str) -> dict[str, int]:
        """Return bytes by device for a process group and its instance; empty if none is left. Blocking."""
        ...


Predict = Callable[[ModelEntry, Backend], Reservation]
"""Estimates a model's memory from its files and settings, unless it is configured. Blocking."""


class Ledger:
    """Predicts, measures and remembers the memory of models, and computes how much is free."""

    def __init__(
        self,
        *,
        devices: Devices,
        predict: Predict,
        measure: Measure,
        footprints: Footprints,
        release_timeout: float,
    ) -> None:
        """`release_timeout`: seconds that freeing the memory of an ended backend may take."""
        self._devices = devices
        self._predict = predict
        self._measure = measure
        self._footprints = footprints
        self._release_timeout = release_timeout
        self._reading: tuple[float, tuple[Device, ...]] = (0.0, ())
        self._most: dict[str, int] = {}
        """The largest raised estimate to keep, in bytes by device."""

    def devices(self) -> tuple[Device, ...]:
        """Return the devices, read now or at most 0.2 s ago."""
        at, devices = self._reading
        if not devices or time.monotonic() - at > _LOOK:
            devices = self._devices.read()
            self._reading = (time.monotonic(), devices)
        return devices

    def reserve(self, entry: ModelEntry, backend: Backend, *, more: bool) -> Reservation:
        """Return the reservation for a model; `more`: its last load lacked memory. Blocking."""
        predicted = self._predict(entry, backend)
        if backend.external:
            return Reservation(options=predicted.options, backend=predicted.backend)
        key = _key(entry, backend)
        learned = self._footprints.get(key)
        if learned and predicted.basis is not Basis.CONFIGURED:
            predicted = replace(
                predicted, memory={**predicted.memory, **learned}, basis=Basis.LEARNED
            )
        if not more:
            return predicted
        raised = {device: int(size * MORE) for device, size in predicted.memory.items()}
        # An estimate that can never be met would prevent the model from loading forever.
        kept = {
            device: max(predicted.memory[device], min(size, self._most.get(device, size)))
            for device, size in raised.items()
        }
        self._footprints.learn(key, kept)
        return replace(predicted, memory=raised, basis=Basis.LEARNED)

    def free(self, occupants: Iterable[Occupant], settings: Tunables) -> dict[str, int]:
        """Return the bytes by device that are free alongside the occupants; no entry means no limit."""
        found = {}
        occupants = list(occupants)
        for device in self.devices():
            reserved = sum(each.memory.get(device.name, 0) for each in occupants)
            budget = budget_of(device, settings)
            # Models that are starting have not yet taken their memory from the device.
            coming = sum(
                each.memory.get(device.name, 0)
                for each in occupants
                if not each.settled and not each.leaving
            )
            ours = device.available + reserved - coming
            self._most[device.name] = int(MOST * min(budget or device.total, ours))
            if settings.fit_check:
                found[device.name] = min(
                    (budget or device.total) - reserved, device.available - coming
                )
            elif budget:
                found[device.name] = budget - reserved
        return found

    def rooms(self, occupants: Iterable[Occupant], settings: Tunables) -> tuple[DeviceUsage, ...]:
        """Return each device with the memory that the occupants reserve on it."""
        occupants = list(occupants)
        return tuple(
            DeviceUsage(
                device,
                sum(each.memory.get(device.name, 0) for each in occupants),
                budget_of(device, settings),
            )
            for device in self.devices()
        )

    async def take_measure(self, instance: Instance) -> bool:
        """Measure and remember the memory of a loaded instance; False if it could not be measured."""
        if instance.process is None:
            return False
        measured = await asyncio.to_thread(
            self._measure.measure, instance.process.pid, instance.uid
        )
        if not measured or instance.stopping:
            return False
        key = _key(instance.entry, instance.backend)
        known = {} if not instance.memory else self._footprints.get(key) or {}
        instance.set_memory(measured)
        # Memory use between calls is below the peak, so a remembered value is lowered once per load at most.
        more = {device: size for device, size in measured.items() if size > known.get(device, -1)}
        self._footprints.learn(key, more)
        return True

    async def released(self, instance: Instance) -> None:
        """Return when the memory of an instance whose processes are gone is free.

        A GPU's driver may need a moment; a load that began before then would fail.
        """
        if instance.process is None or not (instance.memory.keys() - {RAM}):
            return  # main memory is free when the processes are gone
        pid = instance.process.pid

        async def free() -> bool:
            return not await asyncio.to_thread(self._measure.measure, pid, instance.uid)

        try:
            await wait_until(free, timeout=self._release_timeout, what="release of GPU memory")
        except DeadlineError as error:
            _log.warning("memory is not seen to be free", model=instance.model, why=str(error))


def budget_of(device: Device, settings: Tunables) -> int:
    """Return the bytes that all models may use on a device; 0 means all of its memory."""
    text = settings.ram_budget if device.name == RAM else settings.vram_budget
    budget = parse_budget(text, "ram_budget" if device.name == RAM else "vram_budget")
    return 0 if budget == WHOLE else budget.of(device.total)


def _key(entry: ModelEntry, backend: Backend) -> FootprintKey:
    return FootprintKey(entry.name, entry.revision, backend.name)
