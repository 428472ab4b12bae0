"""All metrics of all sources, read at one moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from services.common.errors import DeadlineError
from services.metrics.scrape.exposition import Page, render
from services.metrics.values.family import Family, merged

_T = TypeVar("_T")


class Readout:
    """Reads all sources; scrapes, queries and pushes all use it."""

    def __init__(self, *sources: Callable[[], list[Family]], limit: float) -> None:
        """`sources` return families; `limit` is the timeout of a read in seconds."""
        self._sources = sources
        self._limit = limit

    def families(self) -> list[Family]:
        """Return the merged families, read in the calling thread."""
        return merged(*(source() for source in self._sources))

    def page(self, accept: str = "", accept_encoding: str = "") -> Page:
        """Return a rendered scrape, in the calling thread."""
        return render(self.families(), accept=accept, accept_encoding=accept_encoding)

    async def read(self) -> list[Family]:
        """Return the merged families, read on a thread: thousands of series would delay other calls."""
        return await self.on_thread(self.families)

    async def on_thread(self, work: Callable[[], _T]) -> _T:
        """Run `work` on a thread; raise DeadlineError after the limit."""
        try:
            async with asyncio.timeout(self._limit):
                return await asyncio.to_thread(work)
        except TimeoutError as error:
            raise DeadlineError(
                f"reading the metrics took longer than {self._limit:g} s"
            ) from error
