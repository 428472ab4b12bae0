"""Reloads pinned models that crashed, as a pin means that the model should stay loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from services.common.errors import CorralError
from services.common.process.logging import get_logger
from services.common.tasks import Background
from services.loader.lifecycle.state import Phase
from services.loader.live_settings import LiveSettings
from services.loader.models.catalog import ModelEntry

from .supervisor import Supervisor

_log = get_logger(__name__)

_PAUSE: Final = 1.0
"""The least seconds between two loads of a model."""


class Restarts:
    """The restarts of all pinned models, one at a time for each."""

    def __init__(
        self,
        *,
        pinned: Callable[[ModelEntry], bool],
        begin_load: Callable[[str], object],
        settings: LiveSettings,
        tasks: Background,
    ) -> None:
        """`begin_load` begins to load the named model; `pinned` returns whether a model is pinned."""
        self._pinned = pinned
        self._begin_load = begin_load
        self._settings = settings
        self._tasks = tasks
        self._closing = asyncio.Event()
        self._recent: set[str] = set()
        """Models that were reloaded less than a cooldown ago."""
        self._refusing = False

    def refuse(self) -> None:
        """Reload no more models."""
        self._refusing = True

    def close(self) -> None:
        """Reload no more models, and end the waits before further reloads."""
        self._refusing = True
        self._closing.set()

    def look(self, supervisor: Supervisor) -> None:
        """Reload the model if it is pinned and has crashed."""
        name, state, entry = supervisor.name, supervisor.state, supervisor.entry
        if state.phase is not Phase.STOPPED or not state.crashed or self._refusing or entry is None:
            return
        if self._pinned(entry) and name not in self._recent:
            self._recent.add(name)
            self._tasks.spawn(self._restart(supervisor), name=f"restart {name}")

    async def _restart(self, supervisor: Supervisor) -> None:
        """Reload once; a refused load, for lack of memory for instance, is retried later."""
        try:
            self._begin_load(supervisor.name)
        except CorralError as error:
            _log.warning(
                "a pinned model is not loaded again", model=supervisor.name, why=str(error)
            )
        cooldown = self._settings.now.model_load_failure_cooldown
        try:
            async with asyncio.timeout(max(cooldown, _PAUSE)):
                await self._closing.wait()
        except TimeoutError:
            self._recent.discard(supervisor.name)
            self.look(supervisor)
