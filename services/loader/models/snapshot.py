"""All models at one moment, built from the contents of the models folder's files. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from services.common.errors import ModelConfigError, Resource

from .config import ModelConfig
from .entry import ModelEntry

Entries = Sequence[ModelEntry]
Double = tuple[str, str, str]
"""A name that two models have, the file that is used, and the ignored one."""


@dataclass(frozen=True, slots=True)
class Models:
    """All models at one moment. Immutable: it may be read from any thread."""

    by_name: Mapping[str, ModelEntry] = field(default_factory=dict)
    """Sorted by name."""
    by_file: Mapping[str, str] = field(default_factory=dict)
    """Names of models by their model file or repository; of several the first name."""
    only: str | None = None
    """The name of the model if exactly one is configured (or, without any, one loose file)."""

    def pick(self, name: str) -> ModelEntry | None:
        """Return the model of that name, or if there is none, the one with a model file of that
        name."""
        return self.by_name.get(name) or self.by_name.get(self.by_file.get(name, ""))

    def exchange(self, changes: Iterable[tuple[Entries, Entries]]) -> Models | None:
        """Return the models after files changed that hold the same ones as before; None if they do not.

        It is the usual case, and does not go through all models.
        """
        by_name = dict(self.by_name)
        for before, now in changes:
            if len(before) != len(now):
                return None
            for old, new in zip(before, now, strict=True):
                if by_name.get(old.name) is not old or _place(old) != _place(new):
                    return None
                by_name[new.name] = new
        return replace(self, by_name=MappingProxyType(by_name))


def merge(
    entries: Iterable[ModelEntry], loose: Mapping[str, ModelEntry]
) -> tuple[Models, set[Double]]:
    """Return all models, and the names used more than once.

    Of equal names the last one counts, as in LocalAI, but a broken model never hides a working one.
    A loose file that a configuration uses is not a model of its own.
    """
    found, doubles = _configured(entries)
    for name, entry in found.items():
        if entry.config.alias and not entry.error:
            target = found.get(entry.config.alias) or loose.get(entry.config.alias)
            if target is None or target.config.alias:
                found[name] = replace(entry, error=wrong_alias(entry))
    used = {path for entry in found.values() for path in _used_files(entry.config)}
    used |= found.keys()
    found |= {name: entry for name, entry in loose.items() if name not in used}
    by_name = dict(sorted(found.items()))
    by_file: dict[str, str] = {}
    for name, entry in by_name.items():
        if entry.config.model:
            by_file.setdefault(entry.config.model, name)
    own = [entry for entry in by_name.values() if not entry.config.alias]
    names = [entry.name for entry in own if not entry.loose] or [entry.name for entry in own]
    only = names[0] if len(names) == 1 else None
    return Models(MappingProxyType(by_name), MappingProxyType(by_file), only), doubles


def wrong_alias(entry: ModelEntry) -> ModelConfigError:
    """Return the error for an alias whose target does not exist, or is an alias too."""
    return ModelConfigError(
        f"{entry.config_file}: model {entry.name!r} is an alias of {entry.config.alias!r}, which is"
        " not a model of its own; name one that is",
        resource=Resource("model", entry.name),
    )


def _configured(entries: Iterable[ModelEntry]) -> tuple[dict[str, ModelEntry], set[Double]]:
    found: dict[str, ModelEntry] = {}
    doubles: set[Double] = set()
    for entry in entries:
        other = found.get(entry.name)
        if other is None:
            found[entry.name] = entry
            continue
        used, ignored = (other, entry) if entry.error and not other.error else (entry, other)
        found[entry.name] = used
        doubles.add((entry.name, used.config_file, ignored.config_file))
    return found, doubles


def _place(entry: ModelEntry) -> tuple[object, ...]:
    """Return the parts of an entry that other entries depend on."""
    config = entry.config
    return (entry.name, entry.error is None, config.alias, config.model, _used_files(config))


def _used_files(config: ModelConfig) -> set[str]:
    return {config.model, config.mmproj, config.draft_model, config.lora_adapter} | set(
        config.lora_adapters
    )
