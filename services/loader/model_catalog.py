"""Which models there are: the YAML files of the models folder, and loose model files beside them.

One unreadable file never hides the others: it stands in the catalog with its error. Nothing is
watched; a look-up compares the folder with what was read last, which costs one scan of the folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from services.common.errors import (
    ModelConfigError,
    ModelDisabledError,
    ModelNotFoundError,
    Resource,
)
from services.common.go_yaml import as_written
from services.common.logs import get_logger
from services.common.loose_files import is_loose_model

from .model_config import ModelConfig, inside_models_folder, parse_config, read_documents

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model: its configuration, or why it cannot be used."""

    name: str
    config: ModelConfig = field(default_factory=ModelConfig)
    config_file: str = ""
    """Below the models folder; empty for a loose file."""
    error: ModelConfigError | None = None
    revision: str = ""
    """Changes with the configuration file or the model file."""

    @property
    def loose(self) -> bool:
        """A model file without a configuration."""
        return not self.config_file


@dataclass(frozen=True, slots=True)
class _Read:
    """What a YAML file held when it had this stamp."""

    stamp: tuple[int, ...]
    entries: tuple[ModelEntry, ...]


class ModelCatalog:
    """The models folder. Blocking and quick; safe to ask at every call that is not for a loaded model.

    It may be asked from several threads: what one of them has read, another need not read again.
    """

    def __init__(self, folder: Path) -> None:
        """Look at `folder`; it may come into being later."""
        self.folder = folder
        self._read: dict[str, _Read] = {}

    def models(self) -> dict[str, ModelEntry]:
        """Return all models by name, sorted; of equal names the first file's wins."""
        found: dict[str, ModelEntry] = {}
        files = sorted(self._files(), key=lambda file: file.name)
        seen = set()
        for file in files:
            if file.name.lower().endswith((".yaml", ".yml")):
                seen.add(file.name)
                for entry in self._entries(file):
                    first = found.setdefault(entry.name, entry)
                    if first.config_file != entry.config_file:
                        _log.debug("model name is taken", name=entry.name, file=entry.config_file)
        for gone in set(self._read) - seen:
            self._read.pop(gone, None)
        used = {path for entry in found.values() for path in _used_files(entry.config)}
        for file in files:
            if is_loose_model(file.name) and file.name not in used and file.name not in found:
                found[file.name] = self._loose(file.name)
        return dict(sorted(found.items()))

    def resolve(self, name: str) -> ModelEntry:
        """Return the model that a call names: by name, by its model file, or a file in a sub-folder.

        An alias is followed once. Raises ModelNotFoundError, ModelConfigError or ModelDisabledError.
        """
        models = self.models()
        entry = self._pick(models, name)
        if entry.config.alias and not entry.error:
            target = models.get(entry.config.alias)
            if target is None or target.config.alias:
                raise ModelConfigError(
                    f"model {name!r} is an alias of {entry.config.alias!r},"
                    " which is not a model of its own"
                )
            entry = target
        if entry.error:
            raise entry.error
        if entry.config.disabled:
            raise ModelDisabledError(
                f"model {entry.name!r} is disabled; set `disabled: false` in {entry.config_file}",
                resource=Resource("model", entry.name),
            )
        return replace(entry, revision=self.revision(entry))

    def find(self, name: str) -> ModelEntry:
        """Return the model as it stands there, usable or not. Raises ModelNotFoundError."""
        return self._pick(self.models(), name)

    def only_model(self) -> str | None:
        """Return the model's name if exactly one is configured (or, without any, one loose file)."""
        models = [entry for entry in self.models().values() if not entry.config.alias]
        configured = [entry.name for entry in models if not entry.loose]
        names = configured or [entry.name for entry in models]
        return names[0] if len(names) == 1 else None

    def _pick(self, models: dict[str, ModelEntry], name: str) -> ModelEntry:
        if entry := models.get(name):
            return entry
        for entry in models.values():
            if entry.config.model == name:
                return entry
        try:
            inside_models_folder(name)
        except ValueError:
            raise ModelNotFoundError.of(name) from None
        if "/" in name and (self.folder / name).is_file():
            return self._loose(name)
        raise ModelNotFoundError(
            f"model not found: {name!r} is not in {self.folder}; install it, or list what is there"
            " with ListModels",
            resource=Resource("model", name),
        )

    def _loose(self, name: str) -> ModelEntry:
        config = ModelConfig.model_validate({"name": name, "parameters": {"model": name}})
        return ModelEntry(name, config)

    def _files(self) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder) as files:
                for file in files:
                    if not file.name.startswith(".") and file.is_file():
                        yield file
        except FileNotFoundError:
            return

    def _entries(self, file: os.DirEntry[str]) -> tuple[ModelEntry, ...]:
        try:
            status = file.stat()
        except FileNotFoundError:
            return ()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._read.get(file.name)
        if known is None or known.stamp != stamp:
            known = _Read(stamp, tuple(_read_entries(Path(file.path), stamp)))
            self._read[file.name] = known
        return known.entries

    def revision(self, entry: ModelEntry) -> str:
        """Return what changes when the model's configuration or its file does."""
        try:
            status = (self.folder / entry.config.model).stat()
        except (OSError, ValueError):
            return f"{entry.revision}/-"
        return f"{entry.revision}/{status.st_mtime_ns}.{status.st_size}.{status.st_ino}"


def _read_entries(path: Path, stamp: tuple[int, ...]) -> Iterator[ModelEntry]:
    revision = ".".join(str(number) for number in stamp)
    fallback = path.stem
    try:
        documents = read_documents(path)
    except ModelConfigError as error:
        yield ModelEntry(fallback, config_file=path.name, error=error, revision=revision)
        return
    for index, document in enumerate(documents):
        parameters = document.get("parameters")
        model = parameters.get("model") if isinstance(parameters, dict) else None
        name = _as_name(document.get("name")) or _as_name(model) or fallback
        source = path.name if len(documents) == 1 else f"{path.name}[{index}]"
        try:
            config = parse_config({**document, "name": name}, source=source)
        except ModelConfigError as error:
            yield ModelEntry(name, config_file=path.name, error=error, revision=revision)
        else:
            yield ModelEntry(name, config, path.name, revision=revision)


def _as_name(value: object) -> str:
    text = value if isinstance(value, str) else as_written(value)
    return text or ""


def _used_files(config: ModelConfig) -> set[str]:
    return {config.model, config.mmproj, config.draft_model, config.lora_adapter} | set(
        config.lora_adapters
    )
