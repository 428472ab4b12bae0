"""The configured models: the YAML files of the models folder, and loose model files next to them.

An unreadable file never hides the others: it is in the catalog with its error. `look` compares the
folder with what was read last and reads only files that changed; between two scans every question
is answered from memory, except for the file of the model that a call names, which is checked each
time.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from services.common.errors import (
    ModelConfigError,
    ModelDisabledError,
    ModelNotFoundError,
    Resource,
)
from services.common.files import Stamp, file_stamp
from services.common.loose_files import is_loose_model
from services.common.process.logging import get_logger

from .config import ModelConfig, inside_models_folder
from .config_errors import UnreadableConfigError
from .config_file import MAXIMUM_BYTES, MAXIMUM_LIST_BYTES, lines_of, models_in, read_file
from .entry import ModelEntry
from .snapshot import Models, merge, wrong_alias
from .source_lines import Lines

__all__ = ["ModelCatalog", "ModelEntry", "Models"]

_log = get_logger(__name__)

_SETTLED = 0.5
"""Seconds after its last change in which a file that cannot be read may be half written."""
_CLOCK_TICK = 0.02
"""Seconds within which a folder may change twice and have one time of change."""
_SLICE = 50
"""Files to read at most for a call that names a model which is not known: some 10 ms."""
_MANY = 500
"""Files at once for which it is worth it to pause the garbage collector."""
_LOOK_SHARE = 20
"""Scans for unknown names take no more than this fraction of the time."""


@dataclass(frozen=True, slots=True)
class _File:
    """A YAML file's contents when it had this stamp."""

    stamp: Stamp | None
    entries: tuple[ModelEntry, ...]


@dataclass(frozen=True, slots=True)
class _Look:
    """When the folder was looked at last."""

    changed_at: int
    """The folder's modification time then; 0 if there is more to read."""
    clock: float
    seconds: float
    """How long it took."""


class ModelCatalog:
    """The models folder. May be used from several threads."""

    def __init__(self, folder: Path, list_file: Path | None = None) -> None:
        """Read `folder`, which may be created later, and a file outside it that lists models.

        Where both configure a model of the same name, the folder's counts, as in LocalAI.
        """
        self.folder = folder
        self._list_file = list_file
        self._files: dict[str, _File] = {}
        self._loose: dict[str, ModelEntry] = {}
        self._models = Models()
        self._looked: _Look | None = None
        self._doubles: set[tuple[str, str, str]] = set()
        self._lock = threading.RLock()

    def models(self) -> Mapping[str, ModelEntry]:
        """Return all models by name, sorted; see `current`."""
        return self.current().by_name

    def current(self) -> Models:
        """Return the models as of the last scan, or now if files came or went since.

        Costs one stat, if nothing came or went.
        """
        if self._looked is None:
            return self.look()
        return self.look(_SLICE) if self._came_or_went(self._looked) else self._models

    def look(self, most: int | None = None, first: str = "") -> Models:
        """Compare the folder with what was read last, read what changed, and return the current
        models.

        Costs one stat of each YAML file. With `most`, at most that number of files is read, those
        in `first` before all others; the rest is left for the next scan. Raises OSError if the
        folder exists and cannot be read.
        """
        clock, changed_at = time.time(), self._folder_changed()
        paths = dict(self._scan())
        stamps = {name: file_stamp(path) for name, path in paths.items() if _is_config(name)}
        known = self._files
        changed = [
            name
            for name, stamp in stamps.items()
            if name not in known or known[name].stamp != stamp
        ]
        left = most is not None and len(changed) > most
        if left:
            changed.sort(key=lambda name: name.rpartition(".")[0] != first)
            del changed[most:]
        # Without the lock: reading can take long, and a call must not wait for it.
        with _without_collection(len(changed)):
            read = {name: self._read(name, paths[name], stamps[name]) for name in changed}
        loose = {name for name in paths if name not in stamps}
        with self._lock:
            if self._looked is not None and self._looked.clock > clock:
                # Another scan began later and ended first; the changes that it found stay.
                read = {n: file for n, file in read.items() if self._files.get(n) is known.get(n)}
                stamps |= dict.fromkeys(self._files)
                loose |= self._loose.keys()
            else:
                self._looked = _Look(0 if left else changed_at, clock, time.time() - clock)
            files = {name: file for name, file in self._files.items() if name in stamps}
            files.update((name, file) for name, file in read.items() if file is not None)
            self._put(files, loose, read)
            return self._models

    def _put(self, files: dict[str, _File], loose: Collection[str], read: Iterable[str]) -> None:
        """Update the models from the folder's current contents; `read` names the files that may
        have changed."""
        before, self._files = self._files, files
        alike = self._loose.keys() == loose and before.keys() == files.keys()
        if alike and all(before[name] is files[name] for name in read):
            return
        self._loose = {name: self._loose.get(name) or _loose(name) for name in loose}
        pairs = [(before[n].entries, files[n].entries) for n in read] if alike else None
        changed = self._models.exchange(pairs) if pairs is not None else None
        if changed is None:
            order = sorted(files, key=lambda name: (name != str(self._list_file), name))
            entries = (entry for name in order for entry in files[name].entries)
            changed, doubles = merge(entries, self._loose)
            for name, used, ignored in doubles - self._doubles:
                _log.warning("two models have one name", model=name, used=used, ignored=ignored)
            self._doubles = doubles
        self._models = changed

    def resolve(self, name: str) -> ModelEntry:
        """Return the model that a call names: by name, by its model file, or a file in a sub-folder.

        An alias is followed once. Raises ModelNotFoundError, ModelConfigError or ModelDisabledError.
        """
        entry = self.find(name)
        if entry.config.alias and not entry.error:
            entry = self.find(entry.config.alias)
            if entry.config.alias:  # its own target changed in this moment
                raise wrong_alias(entry)
        if entry.error:
            raise entry.error
        if entry.config.disabled:
            raise ModelDisabledError(
                f"model {entry.name!r} is disabled; set `disabled: false` in {entry.config_file}",
                resource=Resource("model", entry.name),
            )
        return replace(entry, revision=self.revision(entry))

    def find(self, name: str) -> ModelEntry:
        """Return the current state of the model in the catalog, usable or not. Raises
        ModelNotFoundError.

        For a known model its file is checked once more; for an unknown one the whole folder is, if
        it can have changed: a file written a moment ago counts.
        """
        entry = self.current().pick(name)
        if entry is not None and entry.config_file and self._reread(entry.config_file):
            entry = self._models.pick(name)
        if entry is None and self._may_have_changed():
            entry = self.look(_SLICE, name).pick(name)
        if entry is not None and (entry.config_file or "/" in name):
            return entry
        try:
            inside_models_folder(name)
            if (entry or "/" in name) and (self.folder / name).is_file():
                return entry or _loose(name)
        except ValueError:
            raise ModelNotFoundError.of(name) from None
        raise ModelNotFoundError(
            f"model not found: {name!r} is not in {self.folder}; install it, or list what is there"
            " with ListModels",
            resource=Resource("model", name),
        )

    def only_model(self) -> str | None:
        """Return the model's name if exactly one is configured (or, without any, one loose file)."""
        return self.current().only

    def revision(self, entry: ModelEntry) -> str:
        """Return a revision that changes with the model's configuration or its file; costs one
        stat."""
        stamp = file_stamp(self.folder / entry.config.model) if entry.config.model else None
        return f"{entry.revision}/{'.'.join(map(str, stamp)) if stamp else '-'}"

    def lines(self, entry: ModelEntry) -> Lines | None:
        """Return the lines of the model's fields in its file; None if that cannot be read any more."""
        if entry.loose:
            return None
        try:
            content = read_file(str(self.folder / entry.config_file), maximum=MAXIMUM_LIST_BYTES)
            return lines_of(content, entry.position)
        except (ModelConfigError, ValueError, RecursionError) as error:
            _log.debug("no lines of a model's file", file=entry.config_file, why=str(error))
        return None

    # The folder

    def _scan(self) -> Iterator[tuple[str, Path | str]]:
        """Yield the names and paths of all files that may be or configure models; the list file first."""
        if self._list_file is not None:
            yield str(self._list_file), self._list_file
        try:
            with os.scandir(self.folder) as files:
                for file in files:
                    if not file.name.startswith((".", "~")) and _is_wanted(file):
                        yield file.name, file.path
        except (FileNotFoundError, NotADirectoryError):
            return

    def _folder_changed(self) -> int:
        try:
            return self.folder.stat().st_mtime_ns
        except OSError:
            return 0

    def _came_or_went(self, look: _Look) -> bool:
        """Whether a file can have come or gone since; one rewritten in place goes unnoticed."""
        return (
            self._folder_changed() != look.changed_at
            or abs(look.clock - look.changed_at / 1e9) < _CLOCK_TICK
        )

    def _may_have_changed(self) -> bool:
        """Whether scanning for an unknown name is worth its cost."""
        look = self._looked
        if look is None or self._came_or_went(look):
            return True
        return time.time() - look.clock > look.seconds * _LOOK_SHARE

    def _reread(self, name: str) -> bool:
        """Read the file again if it has changed; return whether it has."""
        path = self.folder / name
        known, stamp = self._files.get(name), file_stamp(path)
        if known is None or known.stamp == stamp:
            return False
        read = self._read(name, path, stamp) if os.path.lexists(path) else None
        if read is None and stamp is not None:
            return False
        with self._lock:
            files = {other: file for other, file in self._files.items() if other != name}
            if read is not None:
                files[name] = read
            self._put(files, self._loose.keys(), [name])
            return True

    def _read(self, name: str, path: Path | str, stamp: Stamp | None) -> _File | None:
        """Return the file's current models; None to keep the previous ones."""
        listing = self._list_file is not None and name == str(self._list_file)
        try:
            maximum = MAXIMUM_LIST_BYTES if listing else MAXIMUM_BYTES
            entries = tuple(models_in(read_file(str(path), maximum=maximum), name))
        except ModelConfigError as error:
            entries = (ModelEntry(Path(name).stem, config_file=name, error=error),)
        known = self._files.get(name)
        half = any(isinstance(entry.error, UnreadableConfigError) for entry in entries)
        if known and half and not any(entry.error for entry in known.entries) and _young(stamp):
            return None  # it may be half written; the next scan reads it again
        return _File(stamp, entries)


@contextmanager
def _without_collection(files: int) -> Iterator[None]:
    """Keep the garbage collector from going through thousands of new objects that all stay alive.

    That would take a quarter of the time for a large folder.
    """
    if files < _MANY or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _is_config(name: str) -> bool:
    return name.lower().endswith((".yaml", ".yml"))


def _is_wanted(file: os.DirEntry[str]) -> bool:
    if _is_config(file.name):
        # A link to nothing is shown with its error; a folder of that name means nothing.
        return not file.is_dir() or file.is_symlink()
    return is_loose_model(file.name) and file.is_file()


def _young(stamp: Stamp | None) -> bool:
    return stamp is not None and abs(time.time() - stamp[0] / 1e9) < _SETTLED


def _loose(name: str) -> ModelEntry:
    return ModelEntry(
        name, ModelConfig.model_validate({"name": name, "parameters": {"model": name}})
    )
