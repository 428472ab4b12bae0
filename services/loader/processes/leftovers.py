"""Processes left by earlier loaders: found by their records and markers, then ended or adopted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from services.common.errors import DeadlineError
from services.common.process.logging import get_logger
from services.common.tasks import wait_until

from .guard_client import dismiss_guards
from .interface import MARKER, GroupWatch
from .lookup import find_marked, is_process, own_group
from .pipes import NamedPipes
from .registry import ProcessRecord, ProcessRegistry

LOADER_MARKER = "CORRAL_LOADER_ID"
"""Environment variable that names the loader which started a process."""

_log = get_logger(__name__)


class Leftovers:
    """Processes of loaders that used the same state folder and did not end them."""

    def __init__(
        self,
        loaders: set[str],
        records: Sequence[ProcessRecord],
        registry: ProcessRegistry,
        pipes: NamedPipes,
        kill_timeout: float,
    ) -> None:
        """The loaders and records come from `registry.open`; processes get `kill_timeout` seconds
        to end."""
        self._pipes = pipes
        self._loaders = loaders
        self._records = records
        self._registry = registry
        self._kill_timeout = kill_timeout

    @property
    def markers(self) -> set[str]:
        """The markers of the earlier loaders."""
        return {f"{LOADER_MARKER}={loader}" for loader in self._loaders}

    async def claim(self, watch: GroupWatch, *, adopt: bool) -> list[ProcessRecord]:
        """Hand them to `watch`, end the earlier loaders' guards, then end all that is not worth
        keeping.

        Returns those to `adopt`: ready, alive, and with readable output. A process is never without
        a guard: should this loader die, `watch` ends them.
        """
        kept = []
        for record in self._records:
            if not is_process(record.pid, record.birth, _marker(record)):
                continue
            if adopt and record.adoptable and self._pipes.exist(record.uid):
                watch.keep(record.pid, record.uid)
                kept.append(record)
            else:
                watch.add(record.pid, record.uid)
        if self._loaders:
            await dismiss_guards(self.markers, self._kill_timeout)
        uids = {record.uid for record in kept}
        doomed = [record for record in self._records if record.uid not in uids]
        left = {_marker(record) for record in kept}
        if await self._end(watch, doomed, self.markers, left):
            self._registry.forget(self._loaders)
        self._pipes.keep_only(uids)
        return kept

    async def end(self, watch: GroupWatch, records: Sequence[ProcessRecord]) -> bool:
        """Kill what is left of these; True when nothing is.

        A process is signalled only if it carries the marker, or is in a group whose leader or
        member does: another process that reused one of our pids is left alone.
        """
        return await self._end(watch, records, set(), set())

    async def _end(
        self,
        watch: GroupWatch,
        records: Sequence[ProcessRecord],
        markers: set[str],
        left: set[str],
    ) -> bool:
        """Kill these, and all processes that carry one of the other markers but none of `left`."""
        markers = markers | {_marker(record) for record in records}
        if not markers:
            return True
        ended: set[int] = set()

        def kill() -> bool:
            found = find_marked(markers, spared=left)
            for record in records:
                leads = is_process(record.pid, record.birth, _marker(record))
                found += own_group(record.pid, _marker(record), leads=leads)
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
                    ended.add(process.pid)
            return not found

        async def gone() -> bool:
            return await asyncio.to_thread(kill)

        began = time.monotonic()
        try:
            await wait_until(gone, timeout=self._kill_timeout, what="end of earlier processes")
        except DeadlineError:
            _log.error("processes of an earlier loader cannot be ended", pids=sorted(ended))
            return False
        for record in records:
            watch.remove(record.pid, record.uid)
            self._registry.remove(record.uid)
            self._pipes.remove(record.uid)
        if ended:
            seconds = round(time.monotonic() - began, 3)
            _log.warning("ended what an earlier loader left", pids=sorted(ended), seconds=seconds)
        return True


def _marker(record: ProcessRecord) -> str:
    return f"{MARKER}={record.uid}"
