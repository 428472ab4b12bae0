"""Memory that models really needed when they were loaded before, kept over restarts."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from services.common.files import write_atomically
from services.common.process.logging import get_logger

_log = get_logger(__name__)

MAX_ENTRIES: Final = 1000
"""Maximum number of entries; the one learned the longest ago goes first. An entry takes about 150
bytes."""

WRITE_INTERVAL: Final = 5.0
"""Seconds from the first change until the file is written; a crash loses at most what was learned in them."""

DECAY: Final = 0.2
"""Fraction of the difference by which the figure falls when a model needed less than before."""

_VERSION: Final = 1


class FootprintKey(NamedTuple):
    """The key of a figure: another revision of the configuration, or another backend, needs another
    amount."""

    model: str
    revision: str
    backend: str


class Footprints:
    """Remembers bytes by device for each model, revision and backend. May be used from any thread.

    A figure rises at once and comes down slowly: one that is too low costs a load that runs out of
    memory, one that is too high costs at most an unnecessary eviction; yet a model that once had an
    unusually long context must not count as that large forever.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_entries: int = MAX_ENTRIES,
        write_interval: float = WRITE_INTERVAL,
    ) -> None:
        """Read the file, if there is one; a broken one is reported, and overwritten with the next change."""
        self._path = path
        self._max_entries = max_entries
        self._write_interval = write_interval
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False
        self._entries = _read(path)
        self._bound()

    def get(self, key: FootprintKey) -> dict[str, int] | None:
        """Return bytes by device; None if the model has never been measured like that."""
        with self._lock:
            entry = self._entries.get(key)
            return None if entry is None else dict(entry)

    def learn(self, key: FootprintKey, measured: Mapping[str, int]) -> None:
        """Record a loaded model's memory. A device that is missing was not measured, and stays as
        it was.

        Returns at once; the file is written later, by another thread.
        """
        if not measured:
            return
        with self._lock:
            entry = self._entries.pop(key, {})
            self._entries[key] = entry | {
                device: merged(entry.get(device), size) for device, size in measured.items()
            }
            self._bound()
            if self._timer is None and not self._closed:
                self._timer = threading.Timer(self._write_interval, self._write)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Write pending changes. Blocking; idempotent."""
        with self._lock:
            self._closed = True
            timer = self._timer
        if timer is not None:
            timer.cancel()
            self._write()

    def _bound(self) -> None:
        while len(self._entries) > self._max_entries:
            del self._entries[next(iter(self._entries))]

    def _write(self) -> None:
        with self._writing:
            with self._lock:
                if self._timer is None:
                    return  # the other one of timer and close has written it
                self._timer = None
                text = _dump(self._entries)
            try:
                write_atomically(self._path, text)
            except OSError as error:
                _log.warning("footprints cannot be kept", file=str(self._path), error=str(error))


def merged(before: int | None, measured: int) -> int:
    """Return the new figure for a device, given the one before and what was measured now."""
    if before is None or measured >= before:
        return measured
    return before - round((before - measured) * DECAY)


def _dump(entries: Mapping[FootprintKey, Mapping[str, int]]) -> str:
    listed = [{**key._asdict(), "bytes": sizes} for key, sizes in entries.items()]
    return json.dumps({"version": _VERSION, "footprints": listed}, indent=1)


def _read(path: Path) -> dict[FootprintKey, dict[str, int]]:
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    # A RecursionError is what deeply nested brackets make.
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        _log.warning(
            "the learned memory needs cannot be read; starting without them",
            file=str(path),
            error=repr(error),
        )
        return {}


def _parse(document: Any) -> dict[FootprintKey, dict[str, int]]:
    if document["version"] != _VERSION:
        raise ValueError(f"version {document['version']!r} is not {_VERSION}")
    entries = {}
    for item in document["footprints"]:
        key = FootprintKey(item["model"], item["revision"], item["backend"])
        sizes = dict(item["bytes"])
        texts = (*key, *sizes)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{texts!r} are not all texts")
        if not all(type(size) is int and size >= 0 for size in sizes.values()):
            raise ValueError(f"{sizes!r} are not all bytes")
        entries[key] = sizes
    return entries
