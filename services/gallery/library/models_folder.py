"""The models folder: its configurations, what each of them uses, and its loose files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from services.common.errors import InvalidRequestError, PathEscapeError
from services.common.files import stamp_of
from services.common.loose_files import is_loose_model
from services.common.process.logging import get_logger
from services.gallery.index.document import DocumentError, parse_mapping
from services.gallery.index.entry import usecases

FOLDER: Final = ".corral"
"""The gallery's own folder in the models folder."""
RECORD_PREFIX: Final = "._gallery_"
_YAML: Final = (".yaml", ".yml")
# Where a configuration names files, as paths below the models folder.
_FILE_KEYS: Final = ("mmproj", "draft_model", "lora_adapter", "lora_base", "vae", "tokenizer")
_FILE_LIST_KEYS: Final = ("lora_adapters",)
# The longest file name of common file systems, less what we put around a model's name.
_LONGEST_NAME: Final = 255 - len(f"{RECORD_PREFIX}.yaml.new")
_NAME: Final = re.compile(r"[^/\\\0\n\r]+")
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Configured:
    """A model's configuration file, and the gallery's record of it."""

    file: str
    config: Mapping[str, Any]
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The model's name: the configured one, or that of the file."""
        return str(self.config.get("name") or "") or Path(self.file).stem

    @property
    def model_file(self) -> str:
        """The model file or repository, as configured."""
        parameters = self.config.get("parameters")
        return str(parameters.get("model") or "") if isinstance(parameters, Mapping) else ""

    @property
    def backend(self) -> str:
        """The configured backend."""
        return str(self.config.get("backend") or "")

    @property
    def usecases(self) -> tuple[str, ...]:
        """The configured use cases."""
        return usecases(self.config.get("known_usecases"))

    @property
    def entry(self) -> str:
        """`gallery@entry`, if that was recorded."""
        gallery, entry = self.record.get("gallery"), self.record.get("entry_name")
        return f"{gallery}@{entry}" if gallery and entry else ""

    @property
    def uses(self) -> frozenset[str]:
        """The files that it needs, below the models folder."""
        names = [self.model_file, *(self.config.get(key) for key in _FILE_KEYS)]
        for key in _FILE_LIST_KEYS:
            value = self.config.get(key)
            names += value if isinstance(value, list) else []
        for rows in (self.record.get("files"), self.config.get("download_files")):
            rows = rows if isinstance(rows, list) else []
            names += [row.get("filename") for row in rows if isinstance(row, Mapping)]
        return frozenset(os.path.normpath(name) for name in names if name and isinstance(name, str))


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of the models folder."""

    configured: tuple[Configured, ...] = ()
    files: tuple[str, ...] = ()
    """Regular files directly in it that can be models by their names, sorted."""

    def users(self, filename: str, *, but: str) -> list[str]:
        """Return the models that use a file or are configured by it, except for that of `but`."""
        path = os.path.normpath(filename)
        others = (one for one in self.configured if one.file != but)
        return [one.name for one in others if path in one.uses or path == one.file]


class ModelsFolder:
    """The folder itself. Its methods block: call them from a thread."""

    def __init__(self, path: Path) -> None:
        """`path` is the folder; it is not created."""
        self.path = path
        self._read: dict[str, tuple[tuple[int, int, int], dict[str, Any] | None]] = {}

    def scan(self) -> Contents:
        """Read the folder; an unreadable configuration is logged and left out."""
        try:
            names = sorted(item.name for item in os.scandir(self.path))
        except FileNotFoundError:
            return Contents()
        configured = []
        for name in names:
            if name.startswith(".") or not name.lower().endswith(_YAML):
                continue
            if (one := self.configured(name)) is not None:
                configured.append(one)
        files = tuple(
            name for name in names if is_loose_model(name) and (self.path / name).is_file()
        )
        return Contents(tuple(configured), files)

    def configured(self, file: str) -> Configured | None:
        """Return the model of a configuration file; None if it cannot be read."""
        if (config := self._mapping(file)) is None:
            return None
        record = self._mapping(f"{RECORD_PREFIX}{Path(file).stem}.yaml") or {}
        return Configured(file, config, record)

    def size(self, names: frozenset[str]) -> int:
        """Return the total size of those files that exist."""
        total = 0
        for name in names:
            path = self.path / name
            if not name.startswith(("/", "..")) and path.is_file():
                total += path.stat().st_size
        return total

    def target(self, filename: str) -> Path:
        """Return the path of a file; raises PathEscapeError if it is outside, also through a symlink."""
        parts = filename.split("/")
        if (
            not filename
            or "\0" in filename
            or "\\" in filename
            or filename.startswith("/")
            or any(part in ("", ".", "..") for part in parts)
        ):
            raise PathEscapeError(f"{filename!r} is not the path of a file below the models folder")
        if parts[0] == FOLDER or parts[-1].startswith(RECORD_PREFIX):
            raise PathEscapeError(f"{filename!r} is one of the gallery's own files")
        target = self.path / filename
        if not target.parent.resolve().is_relative_to(self.path.resolve()):
            raise PathEscapeError(f"{filename!r} leads out of the models folder through a link")
        return target

    def _mapping(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            stamp = stamp_of(path.stat())
            if (known := self._read.get(name)) and known[0] == stamp:
                return known[1]
            config: dict[str, Any] | None = parse_mapping(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._read.pop(name, None)
            return None
        except (OSError, UnicodeDecodeError, DocumentError) as error:
            _log.warning("a configuration cannot be read", file=str(path), error=str(error))
            if isinstance(error, OSError):
                return None
            config = None
        self._read[name] = (stamp, config)
        return config


def check_name(name: str, field: str) -> str:
    """Return a name under which a model can be installed; it becomes a file's name."""
    if not _NAME.fullmatch(name) or name.startswith(".") or name != name.strip():
        raise InvalidRequestError.of(
            field, f"{name!r} cannot be a file's name: leave out /, \\, a dot or blank at the start"
        )
    if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        raise InvalidRequestError.of(field, f"is longer than {_LONGEST_NAME} bytes")
    return name
