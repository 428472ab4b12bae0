"""Computes the effective options of a model, and from them the memory that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.common.files import Stamp, file_stamp
from services.common.process.logging import get_logger
from services.loader.backends.backend import Backend
from services.loader.live_settings import LiveSettings
from services.loader.memory.estimate import estimate
from services.loader.memory.reservation import Reservation
from services.loader.models.catalog import ModelEntry
from services.loader.models.gguf import GgufError, Header, read_header

from .defaults import Facts, OptionSettings, Value, is_llama
from .effective import effective_values, sent, usage_of

_log = get_logger(__name__)

_KEPT = 1024
"""Headers to cache: they are small, and every query for a model's options needs its header."""


@dataclass(frozen=True, slots=True)
class _Kept:
    stamp: Stamp
    header: Header | None


@dataclass(frozen=True, slots=True)
class LoaderDefaults:
    """The loader's settings for options that models leave open: fixed ones and changeable ones."""

    at_start: OptionSettings
    live: LiveSettings

    def now(self) -> OptionSettings:
        """Return the settings in force."""
        live = self.live.now
        return replace(
            self.at_start, threads=live.threads, context_size=live.context_size, f16=live.f16
        )


class OptionMaker:
    """Computes the options sent to a backend at LoadModel, and the memory that they need.

    Reads the header of a GGUF file the first time it is needed: blocking, and safe to call from several
    threads.
    """

    def __init__(
        self,
        models_path: Path,
        settings: Callable[[], OptionSettings] = OptionSettings,
        gpus: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`settings` and `gpus` (total bytes by name, such as `gpu0`) are called for each computation."""
        self._models_path = models_path
        self._settings = settings
        self._gpus = gpus
        self._headers: dict[str, _Kept] = {}

    def values(self, entry: ModelEntry, backend: str) -> dict[str, Value]:
        """Return the value of each field of LoadModel's request, and where it comes from."""
        settings = self._settings()
        asked = settings.guessing and is_llama(backend)
        facts = Facts(settings, self.header(entry) if asked else None, self._gpus())
        revision = entry.revision.partition("/")[0]
        return effective_values(entry.config, revision, backend, self._models_path, facts)

    def sent(self, entry: ModelEntry, backend: str) -> dict[str, Any]:
        """Return the bare values, as LoadModel sends them."""
        return sent(self.values(entry, backend))

    def predict(self, entry: ModelEntry, backend: Backend) -> Reservation:
        """Return the memory that the model will need with that backend, and the options used."""
        values = self.values(entry, backend.name)
        header, gpus = self.header(entry), self._gpus()
        found = estimate(entry.config, self._models_path, header, usage_of(values), gpus)
        return replace(found, options=sent(values), backend=backend.name)

    def header(self, entry: ModelEntry) -> Header | None:
        """Return the header of the model's file; None if it has none. Read again when the file changes."""
        model = entry.config.model
        path = self._models_path / model
        if (stamp := file_stamp(path)) is None:
            return None
        kept = self._headers.get(model)
        if kept is None or kept.stamp != stamp:
            kept = _Kept(stamp, _header(path))
            if len(self._headers) >= _KEPT:
                self._headers.clear()
            self._headers[model] = kept
        return kept.header


def _header(path: Path) -> Header | None:
    try:
        if not path.is_file():
            return None
        return read_header(path)
    except GgufError as error:
        _log.debug("no header", file=str(path), why=str(error))
    except OSError as error:
        _log.debug("a model file cannot be read", file=str(path), why=str(error))
    return None
