"""Detecting changes in the models folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

from services.common.process.logging import get_logger

from .catalog import ModelCatalog, ModelEntry, Models
from .inotify import FolderEvents

_log = get_logger(__name__)

_SETTLE = 0.05
"""Seconds from the first sign of a change to the scan: files written together are read together."""
_SETTLE_MOST = 0.2
"""The same for a folder that takes long to scan."""
_SHARE = 200
"""Looks without a sign of change take no more than this part of the time, however large the folder."""
_AT_ONCE = 100
"""Changes to report before the calls in progress get their turn."""


class Follower:
    """Compares the models folder with its last state, and reports models that came, changed or
    went.

    The system announces most changes, and they are seen within a tenth of a second; those that it
    does not announce (network folders) are found by polling.
    """

    def __init__(
        self,
        catalog: ModelCatalog,
        *,
        active: Callable[[], Iterable[str]],
        changed: Callable[[str], None],
        revision_is: Callable[[str, str], None],
    ) -> None:
        """`active` names the models whose files are followed too, and `revision_is` gets their
        revisions.

        `changed` is called with the name of each model that came, changed or went.
        """
        self.models = Models()
        """The models folder when it was looked at last."""
        self._catalog = catalog
        self._active = active
        self._changed = changed
        self._revision_is = revision_is

    def refresh(self) -> None:
        """Scan the folder and report changes."""
        for name in self._take(self._catalog.look()):
            self._changed(name)
        self._tell(self._revisions(self._names()))

    def known_as(self, name: str) -> str:
        """Return the target of an alias or a model file at the last scan; empty if none."""
        if entry := self.models.by_name.get(name):
            return entry.config.alias
        return self.models.by_file.get(name, "")

    async def follow(self, interval: float) -> None:
        """Refresh after each change, and every `interval` seconds, or less often if that costs much."""
        events = FolderEvents(self._catalog.folder)
        with events.watching():
            while True:
                events.attach()
                events.changed.clear()
                started = time.perf_counter()
                try:
                    await self._refresh()
                except OSError as error:
                    _log.warning("the models folder cannot be read", why=str(error))
                cost = time.perf_counter() - started
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(interval, cost * _SHARE)):
                        await events.changed.wait()
                    await asyncio.sleep(min(max(_SETTLE, cost), _SETTLE_MOST))

    async def _refresh(self) -> None:
        # A folder of thousands takes long enough for the calls in progress to notice.
        models = await asyncio.to_thread(self._catalog.look)
        for told, name in enumerate(self._take(models), start=1):
            self._changed(name)
            if told % _AT_ONCE == 0:
                await asyncio.sleep(0)
        self._tell(await asyncio.to_thread(self._revisions, self._names()))

    def _take(self, models: Models) -> Collection[str]:
        """Keep the models; return the names of those that changed."""
        before, self.models = self.models.by_name, models
        now = models.by_name
        if now is before:
            return ()
        return [name for name in now if _differ(before.get(name), now[name])] + [
            name for name in before if name not in now
        ]

    def _names(self) -> list[str]:
        return [name for name in self._active() if name in self.models.by_name]

    def _revisions(self, names: Iterable[str]) -> dict[str, str]:
        models = self.models.by_name
        return {name: self._catalog.revision(models[name]) for name in names if name in models}

    def _tell(self, revisions: dict[str, str]) -> None:
        for name, revision in revisions.items():
            self._revision_is(name, revision)


def _differ(before: ModelEntry | None, now: ModelEntry) -> bool:
    return before is not now and (
        before is None or before.revision != now.revision or str(before.error) != str(now.error)
    )
