"""Unloads loaded models that are idle or stuck, or when memory is short.

Whether a model is overdue is a pure function of times; the loop never waits for the unloads it begins.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Protocol

from services.common.process.logging import get_logger
from services.common.quantities import format_duration
from services.loader.devices.devices import Device
from services.loader.instances.instance import Instance
from services.loader.lifecycle.events import Cause, StopReason
from services.loader.live_settings import LiveSettings, Tunables

from .eviction import Occupant, first_to_go
from .ledger import Ledger
from .scheduler import limits

_log = get_logger(__name__)

SETTLE = 2.0
"""Seconds between unloads for lack of memory: memory is freed some time after an unload."""


class Watched(Protocol):
    """A model, as the watchdog sees it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def instance(self) -> Instance | None:
        """Its instance."""
        ...

    def occupancy(self) -> Occupant | None:
        """Return its memory and slot; None if it holds none."""
        ...

    def evict(self, reason: StopReason, *, force: bool) -> None:
        """Begin to unload it."""
        ...


def overdue(
    occupant: Occupant, stuck: float | None, settings: Tunables
) -> tuple[StopReason, bool] | None:
    """Return why a model must be unloaded now, and whether by force; None if it may stay.

    `stuck`: seconds without progress of the call that has stalled the longest; None without calls. A
    pinned model is not unloaded when idle, but is when stuck.
    """
    if not occupant.settled or occupant.leaving:
        return None
    if settings.watchdog_busy and stuck is not None and stuck > settings.watchdog_busy_timeout:
        limit = format_duration(settings.watchdog_busy_timeout)
        text = f"a call has made no progress for {stuck:.1f} s (watchdog_busy_timeout is {limit})"
        return StopReason(Cause.BUSY, text), True
    if (
        settings.watchdog_idle
        and not occupant.busy
        and not occupant.pinned
        and occupant.idle > settings.watchdog_idle_timeout
    ):
        limit = format_duration(settings.watchdog_idle_timeout)
        text = f"no call came for {occupant.idle:.1f} s (watchdog_idle_timeout is {limit})"
        return StopReason(Cause.IDLE, text), False
    return None


def short_of_memory(devices: Iterable[Device], threshold: float) -> Device | None:
    """Return the first device with memory use above the threshold, by any process."""
    for device in devices:
        if device.total and 1 - device.available / device.total > threshold:
            return device
    return None


class Watchdog:
    """The loop that checks models and unloads them."""

    def __init__(
        self,
        models: Iterable[Watched],
        settings: LiveSettings,
        ledger: Ledger,
    ) -> None:
        """`models` is iterated over at each check."""
        self._models = models
        self._settings = settings
        self._ledger = ledger
        self._changed = asyncio.Event()
        self._quiet_until = 0.0
        settings.listen(self._changed.set)

    async def watch(self) -> None:
        """Check every `watchdog_interval` until cancelled; not while every watchdog is off."""
        while True:
            settings = self._settings.now
            on = settings.watchdog_idle or settings.watchdog_busy or settings.memory_reclaimer
            if on:
                self.look()
            self._changed.clear()
            timeout = max(settings.watchdog_interval, 0.01) if on else None
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def look(self) -> None:
        """Check once, and begin to unload overdue models."""
        settings = self._settings.now
        occupants = []
        for model in list(self._models):
            occupant = model.occupancy()
            if occupant is None or model.instance is None:
                continue
            occupants.append(occupant)
            since = model.instance.stuck_since
            stuck = time.monotonic() - since if since is not None else None
            if found := overdue(occupant, stuck, settings):
                reason, force = found
                _log.warning("watchdog", model=model.name, why=reason.text)
                model.evict(reason, force=force)
        if settings.memory_reclaimer:
            self._reclaim(occupants, settings)

    def _reclaim(self, occupants: list[Occupant], settings: Tunables) -> None:
        now = time.monotonic()
        if any(occupant.leaving for occupant in occupants):
            self._quiet_until = now + SETTLE  # one at a time, and its memory is freed late
            return
        if now < self._quiet_until or not occupants:
            return
        device = short_of_memory(self._ledger.devices(), settings.memory_reclaimer_threshold)
        if device is None:
            return
        victim = first_to_go(occupants, limits(settings), device.name)
        if victim is None:
            return
        used = 1 - device.available / device.total
        text = (
            f"{device.name} is used to {used:.0%}, above {settings.memory_reclaimer_threshold:.0%}"
            " (memory_reclaimer_threshold)"
        )
        self._quiet_until = now + SETTLE
        for model in list(self._models):
            if model.name == victim.name:
                _log.warning("memory reclaimer", model=model.name, why=text)
                model.evict(StopReason(Cause.MEMORY, text), force=victim.busy)

    async def keep_measuring(self, interval: float) -> None:
        """Measure the memory of all loaded models every `interval` seconds, until cancelled."""
        while True:
            for model in list(self._models):
                instance = model.instance
                if instance is not None and instance.ready_since and not instance.stopping:
                    await self._ledger.take_measure(instance)
            await asyncio.sleep(interval)
