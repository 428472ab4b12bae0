"""The available backends, from all places where they are found, as of the last scan.

Scanning is cheap, and is done in the background as well as for an unknown name: a backend that was
just installed is found at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

from services.common.errors import BackendNotFoundError, Resource
from services.common.process.logging import get_logger

from .backend import Backend, BackendSource
from .builds import Resolved, resolve
from .names import TYPE_ALIASES, alternatives

__all__ = ["TYPE_ALIASES", "Backend", "BackendCatalog"]

_log = get_logger(__name__)

Listener = Callable[[frozenset[str]], None]
"""Takes the names that lead elsewhere now, or whose program changed."""


class BackendCatalog:
    """All backends. Safe to ask from several threads; blocking, but quick."""

    def __init__(self, sources: Sequence[BackendSource], capability: str = "default") -> None:
        """Of equal names the first source's wins; `capability` is LocalAI's word for the hardware."""
        self.capability = capability
        self._sources = tuple(sources)
        self._lock = threading.Lock()
        self._found: list[Backend] = []
        self._resolved: Resolved | None = None
        self._news: set[str] = set()
        """Names that changed and have not been reported yet."""

    def refresh(self) -> frozenset[str]:
        """Check for changes, reading only what changed; return the names that now mean something
        else.

        These are names that came or went, whose program or metadata was replaced, that lead to
        another backend, or that became usable or unusable: earlier failures with them no longer
        count.
        """
        with self._lock:
            self._look()
            changed = frozenset(self._news)
            self._news.clear()
        return changed

    async def follow(self, interval: float, changed: Listener | None = None) -> None:
        """Refresh every `interval` seconds, forever; report names that now mean something else."""
        while True:
            await asyncio.sleep(interval)
            try:
                names = await asyncio.to_thread(self.refresh)
            except OSError as error:
                _log.warning("backends cannot be looked at", why=str(error))
                continue
            if names and changed is not None:
                changed(names)

    def backends(self) -> Mapping[str, Backend]:
        """Return all backends by name, in the order of their sources, usable or not."""
        return self._known().backends

    def find(self, name: str) -> Backend:
        """Return the program or address that `name` means: exactly, by its folder, by LocalAI's
        aliases.

        The backend may be unusable; its `error` then gives the reason. Raises BackendNotFoundError,
        which lists what is installed.
        """
        found = self._find(name)
        if found is None or found.error:
            # Just installed, or just fixed.
            found = self._find(name, again=True)
        if found is None:
            raise self._not_found(name)
        return found

    def problems(self) -> list[str]:
        """Return which places could not be read the last time, and why."""
        return [problem for source in self._sources if (problem := source.problem())]

    def look_again(self) -> None:
        """Check for changes at once; the next `refresh` reports them."""
        with self._lock:
            self._look()

    def _known(self, *, again: bool = False) -> Resolved:
        if self._resolved is None or again:
            self.look_again()
        assert self._resolved is not None
        return self._resolved

    def _look(self) -> None:
        before = self._resolved
        found = [item for source in self._sources for item in source.read()]
        if before is not None and found == self._found:
            return
        after = resolve(found, self.capability)
        self._found, self._resolved = found, after
        if before is not None and (changed := _changed(before, after)):
            _log.info("backends changed", names=sorted(changed))
            self._news |= changed

    def _find(self, name: str, *, again: bool = False) -> Backend | None:
        known = self._known(again=again)
        return next(filter(None, map(known.get, alternatives(name))), None)

    def _not_found(self, name: str) -> BackendNotFoundError:
        installed = ", ".join(sorted(self.backends())) or "none"
        problems = "".join(f"; {problem}" for problem in self.problems())
        return BackendNotFoundError(
            f"backend not found: {name}; installed: {installed}. Install it, or name its folder with"
            f" --backends-path{problems}",
            resource=Resource("backend", name),
            metadata={"backend": name},
        )


def _changed(before: Resolved, after: Resolved) -> frozenset[str]:
    names = before.backends.keys() | after.backends.keys() | before.aliases.keys()
    names |= after.aliases.keys()
    return frozenset(name for name in names if _meaning(before, name) != _meaning(after, name))


def _meaning(resolved: Resolved, name: str) -> object:
    found = resolved.get(name)
    if found is None:
        return None
    where = (found.name, found.run_file, found.address)
    return (*where, found.revision, bool(found.error), bool(found.unsuited))
