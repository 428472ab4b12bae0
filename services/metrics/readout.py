"""All values there are, from whatever source, read at one moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from services.common.errors import DeadlineError
from services.metrics.scrape.exposition import Page, render
from services.metrics.values.family import Family, merged

_T = TypeVar("_T")


class Readout:
    """Reads the sources: the scrape, the query and the push all show what this returns."""

    def __init__(self, *sources: Callable[[], list[Family]], limit: float) -> None:
        """Merge what these return; reading may take `limit` seconds."""
        self._sources = sources
        self._limit = limit

    def families(self) -> list[Family]:
        """Read now, in the calling thread."""
        return merged(*(source() for source in self._sources))

    def page(self, accept: str = "", accept_encoding: str = "") -> Page:
        """Return a scrape, in the calling thread."""
        return render(self.families(), accept=accept, accept_encoding=accept_encoding)

    async def read(self) -> list[Family]:
        """Read on a thread: with thousands of series it takes long enough to be felt by other calls."""
        return await self.on_thread(self.families)

    async def on_thread(self, work: Callable[[], _T]) -> _T:
        """Do work that reads, on a thread, or raise DeadlineError."""
        try:
            async with asyncio.timeout(self._limit):
                return await asyncio.to_thread(work)
        except TimeoutError as error:
            raise DeadlineError(
                f"reading the metrics took longer than {self._limit:g} s"
            ) from error
