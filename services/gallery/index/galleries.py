"""The galleries and their indexes, cached in memory, and on disk for when they cannot be read."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final

from services.common.errors import CorralError, GalleryUnavailableError
from services.common.files import write_atomically
from services.common.process.logging import get_logger
from services.gallery.sources.file import local_path
from services.gallery.sources.http import redact
from services.gallery.sources.registry import SourceRegistry, scheme
from services.gallery.threads import run_to_completion

from .document import DocumentError
from .entry import Entry, parse_index

BUILT_IN: Final = "corral"
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GalleryConfig:
    """A gallery: its name, and the addresses of its index in order. The built-in one has none."""

    name: str
    addresses: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether it is on this machine, so that its entries may refer to files of this machine."""
        return not self.addresses or scheme(self.addresses[0]) == "file"

    @property
    def folder(self) -> Path | None:
        """The folder of a gallery that is a file."""
        return local_path(self.addresses[0]).parent if self.addresses and self.local else None


@dataclass(slots=True)
class GalleryState:
    """The current state of a gallery."""

    config: GalleryConfig
    entries: list[Entry] = field(default_factory=list)
    read_at: float | None = None
    """Wall clock; None if it was never read."""
    error: str = ""
    _good_until: float = 0.0
    _left_alone_until: float = 0.0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class IndexLimits:
    """Timeouts, cache times and sizes."""

    ttl: float
    timeout: float
    retry_after: float
    document_size: int


class Galleries:
    """All galleries, in order of precedence."""

    def __init__(
        self,
        galleries: Sequence[GalleryConfig],
        sources: SourceRegistry,
        cache: Path,
        limits: IndexLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`cache` is the folder of the last good copies."""
        self._states = [GalleryState(gallery) for gallery in galleries]
        self._sources = sources
        self._cache = cache
        self._limits = limits
        self._clock = clock

    @property
    def galleries(self) -> Sequence[GalleryState]:
        """The current states, without reading any index."""
        return self._states

    def gallery(self, name: str) -> GalleryConfig | None:
        """Return a gallery by its name."""
        return next((s.config for s in self._states if s.config.name == name), None)

    async def entries(self) -> tuple[list[Entry], list[str]]:
        """Return the entries of all galleries that can be read, and the names of the others.

        Raises GalleryUnavailableError if there are galleries and none of them can be read.
        """
        await asyncio.gather(*(self._fresh(state) for state in self._states))
        missing = [state.config.name for state in self._states if state.read_at is None]
        if missing and len(missing) == len(self._states):
            reasons = "; ".join(f"{s.config.name}: {s.error}" for s in self._states)
            raise GalleryUnavailableError(
                f"no gallery can be read: {reasons}", retry_after=self._limits.retry_after
            )
        return [entry for state in self._states for entry in state.entries], missing

    async def _fresh(self, state: GalleryState) -> None:
        async with state._lock:
            now = self._clock()
            if now < state._good_until or now < state._left_alone_until:
                return
            try:
                await self._read(state)
                state._good_until = self._clock() + self._limits.ttl
            except (CorralError, DocumentError, TimeoutError) as error:
                state.error = str(error) or f"no answer within {self._limits.timeout:g} s"
                state._left_alone_until = self._clock() + self._limits.retry_after
                _log.warning("gallery not read", gallery=state.config.name, error=state.error)
                if state.read_at is None:
                    await self._take_copy(state)

    async def _read(self, state: GalleryState) -> None:
        gallery = state.config
        if not gallery.addresses:
            await self._take(state, await run_to_completion(_built_in), time.time())
            return
        problems = []
        for address in gallery.addresses:
            try:
                async with asyncio.timeout(self._limits.timeout):
                    text = await self._text(address)
                await self._take(state, text, time.time())
            except (CorralError, DocumentError, TimeoutError) as error:
                why = str(error) or f"no answer within {self._limits.timeout:g} s"
                problems.append(f"{redact(address)}: {why}")
                continue
            # Named after the first address, whichever was read: the copy is that of the gallery.
            await run_to_completion(write_atomically, self._copy(gallery), text)
            return
        raise GalleryUnavailableError("; ".join(problems))

    async def _text(self, address: str) -> str:
        text = await self._sources.read(address, limit=self._limits.document_size)
        if address.endswith(".ref"):
            # LocalAI: such a file holds the index's name, in the same folder.
            address = address.rpartition("/")[0] + "/" + text.strip()
            text = await self._sources.read(address, limit=self._limits.document_size)
        return text

    async def _take(self, state: GalleryState, text: str, read_at: float) -> None:
        entries, problems = await run_to_completion(parse_index, text, state.config.name)
        if problems:
            _log.warning(
                "entries left out",
                gallery=state.config.name,
                count=len(problems),
                first=problems[0],
            )
        if not entries and problems:
            raise DocumentError(f"has no usable entry: {problems[0]}")
        state.entries, state.read_at, state.error = entries, read_at, ""

    async def _take_copy(self, state: GalleryState) -> None:
        """Use the last good copy; the error of the gallery is kept."""
        error = state.error
        try:
            text, read_at = await run_to_completion(_kept, self._copy(state.config))
            await self._take(state, text, read_at)
        except (OSError, DocumentError):
            return
        finally:
            state.error = error

    def _copy(self, gallery: GalleryConfig) -> Path:
        identity = "\n".join((gallery.name, *gallery.addresses[:1]))
        return self._cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.yaml"


def _built_in() -> str:
    return (resources.files(__package__) / "data" / "index.yaml").read_text(encoding="utf-8")


def _kept(path: Path) -> tuple[str, float]:
    return path.read_text(encoding="utf-8"), path.stat().st_mtime
