"""A folder of installed backends: one folder for each, with a `run.sh` and LocalAI's
`metadata.json`.

Corral's own add a `corral` object to the metadata. A broken backend is listed with its error and
never hides the others; one that an installer has not finished is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from services.common.process.logging import get_logger
from services.common.syntax_errors import json_errors

from .backend import Backend, Source
from .known_engines import STORES, facts
from .names import base_name, requirements
from .program import (
    ABSENT,
    Stamp,
    digest,
    folders_in,
    foreign_machine,
    program_error,
    program_stamps,
    stamp,
)

_log = get_logger(__name__)

RUN_FILE = "run.sh"
METADATA = "metadata.json"
_UNFINISHED = (".install-tmp", ".install-backup", ".upgrade-tmp", ".backup", ".partial")


@dataclass(frozen=True, slots=True)
class _Read:
    """A folder's contents when it had this stamp."""

    stamp: object
    backend: Backend | None


class BackendFolder:
    """One folder of installed backends; it may be created later, and may disappear."""

    def __init__(self, path: Path, source: Source = Source.USER) -> None:
        """Nothing is read until it is needed."""
        self.path = path
        self._source = source
        self._read: dict[str, _Read] = {}
        self._problem = ""

    def read(self) -> list[Backend]:
        """Return the backends, by their folders' names. Reads only the folders that changed."""
        found: dict[str, _Read] = {}
        for name in self._listed():
            folder = self.path / name
            now = (stamp(folder / RUN_FILE), stamp(folder / METADATA), program_stamps(folder))
            known = self._read.get(name)
            if known is None or known.stamp != now:
                known = _Read(now, self._installed(folder, now))
            found[name] = known
        self._read = found
        return _named([item.backend for item in found.values() if item.backend])

    def problem(self) -> str:
        """Return why the folder could not be read the last time."""
        return self._problem

    def _listed(self) -> list[str]:
        try:
            names, problem = folders_in(self.path), ""
        except FileNotFoundError:
            names, problem = [], ""
        except OSError as error:
            names, problem = [], f"{self.path} cannot be read: {error.strerror}"
        if problem and problem != self._problem:
            # The other folders' backends remain usable.
            _log.warning("a backends folder cannot be read", folder=str(self.path), why=problem)
        self._problem = problem
        return [name for name in names if not name.startswith((".", "_")) and not _unfinished(name)]

    def _installed(self, folder: Path, now: tuple[Stamp, Stamp, object]) -> Backend | None:
        run_file, metadata_file = folder / RUN_FILE, folder / METADATA
        if now[0] == ABSENT and now[1] == ABSENT:
            return None
        base = Backend(folder.name, source=self._source, folder_name=folder.name)
        base = replace(base, revision=digest((str(folder), now)))
        try:
            metadata = _metadata(metadata_file)
        except (OSError, ValueError) as error:
            text = f"{METADATA}: {error}; fix it, or install the backend again"
            return replace(base, run_file=run_file.absolute(), error=text)
        if now[0] == ABSENT and (chosen := _string(metadata, "meta_backend_for")):
            return replace(base, stands_for=chosen)
        if now[0] == ABSENT:
            problem = f"it has no {RUN_FILE}; install it again"
        else:
            programs = [folder / name for name, _ in program_stamps(folder)]
            problem = program_error(run_file) or foreign_machine(programs)
        return described(replace(base, run_file=run_file.absolute(), error=problem), metadata)


def described(backend: Backend, metadata: Mapping[str, Any]) -> Backend:
    """Return the backend with the facts from its metadata, or from the known engines if it has
    none."""
    own = metadata.get("corral")
    own = own if isinstance(own, dict) else {}
    name = _string(metadata, "name") or backend.name
    known = facts(name)
    return replace(
        backend,
        name=name,
        group=_string(metadata, "alias"),
        version=_string(metadata, "version"),
        gallery_url=_string(metadata, "gallery_url") or _string(metadata, "uri"),
        installed=_time(_string(metadata, "installed_at")),
        takes_unix="unix" in _strings(own, "addresses"),
        requires=_strings(own, "requires") or requirements(name),
        formats=_strings(own, "formats") or known.formats,
        usecases=tuple(map(str.lower, _strings(own, "usecases"))) or known.usecases,
        concurrency=_count(own, "concurrency"),
        automatic=own.get("automatic") is not False and base_name(name) not in STORES,
    )


def _unfinished(name: str) -> bool:
    return any(name.endswith(end) or f"{end}-" in name for end in _UNFINISHED)


def _named(backends: list[Backend]) -> list[Backend]:
    """Give each backend a unique name: the folder's name wins over the one in its metadata."""
    taken = {item.name for item in backends if item.name == item.folder_name}
    named = []
    for item in backends:
        if item.name != item.folder_name:
            if item.name in taken:
                item = replace(item, name=item.folder_name)
            taken.add(item.name)
        named.append(item)
    return named


def _metadata(path: Path) -> dict[str, Any]:
    try:
        with json_errors():
            content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - the file is wrong, not the caller
    return content


def _time(text: str) -> float | None:
    try:
        seconds = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if seconds > 0 else None


def _count(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key)
    return value if type(value) is int and 0 < value < 2**31 else 0


def _strings(metadata: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = metadata.get(key)
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _string(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""
