"""Lists installed models: configured ones and loose files, under LocalAI's four policies."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from services.gallery.threads import run_to_completion

from .models_folder import Configured, Contents, ModelsFolder


class LooseFiles(enum.Enum):
    """How model files without a configuration are listed."""

    LOOSE_ONLY = "loose_only"
    SKIP_IF_CONFIGURED = "skip_if_configured"
    SKIP_ALWAYS = "skip_always"
    ALWAYS_INCLUDE = "always_include"


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model in the models folder."""

    name: str
    config_file: str = ""
    model_file: str = ""
    backend: str = ""
    usecases: tuple[str, ...] = ()
    entry: str = ""
    size: int = 0

    @property
    def loose(self) -> bool:
        """Whether it is a file without a configuration."""
        return not self.config_file


@dataclass(frozen=True, slots=True)
class ModelFilter:
    """Conditions on models, combined by AND; an empty one always matches."""

    backend: str = ""
    usecase: str = ""
    name_contains: str = ""

    def keeps(self, model: InstalledModel) -> bool:
        """Return whether a model matches; a loose file has no backend and no use case."""
        return (
            (not self.backend or self.backend.lower() == model.backend.lower())
            and (not self.usecase or self.usecase.lower() in model.usecases)
            and self.name_contains.lower() in model.name.lower()
        )


class InstalledModels:
    """Lists models; every call reads the models folder, so that the result is never stale."""

    def __init__(self, folder: ModelsFolder) -> None:
        """`folder` is the models folder."""
        self._folder = folder

    async def models(
        self, policy: LooseFiles, wanted: ModelFilter = ModelFilter()
    ) -> list[InstalledModel]:
        """Return the models, sorted by name; the order is the same each time.

        A file counts as used if any configuration names it, as model, projector, draft or adapter, also
        one that the conditions leave out.
        """
        return await run_to_completion(self._models, policy, wanted)

    async def exists(self, name: str, policy: LooseFiles) -> bool:
        """Return whether there is a model of exactly this name; loose files count by their file name."""
        return await run_to_completion(self._exists, name, policy)

    async def installed_names(self) -> InstalledNames:
        """Return the names of installed models, to compare gallery entries with."""
        contents = await run_to_completion(self._folder.scan)
        return InstalledNames(
            frozenset(one.entry.lower() for one in contents.configured if one.entry),
            frozenset(one.file for one in contents.configured),
        )

    def _models(self, policy: LooseFiles, wanted: ModelFilter) -> list[InstalledModel]:
        contents = self._folder.scan()
        found: list[InstalledModel] = []
        if policy is not LooseFiles.LOOSE_ONLY:
            found += (self.describe(one) for one in contents.configured)
        found += self._loose(contents, policy)
        return sorted(
            _distinct(filter(wanted.keeps, found)), key=lambda one: (one.name, one.config_file)
        )

    def _loose(self, contents: Contents, policy: LooseFiles) -> Iterable[InstalledModel]:
        if policy is LooseFiles.SKIP_ALWAYS:
            return
        used = frozenset(name for one in contents.configured for name in one.uses)
        for name in contents.files:
            if policy is LooseFiles.ALWAYS_INCLUDE or name not in used:
                yield InstalledModel(
                    name=name, model_file=name, size=self._folder.size(frozenset({name}))
                )

    def _exists(self, name: str, policy: LooseFiles) -> bool:
        if any(one.name == name for one in self._models(policy, ModelFilter())):
            return True
        if policy is LooseFiles.SKIP_ALWAYS or "/" in name or name.startswith("."):
            return False
        # Weights are not listed as models, but the name of such a file does exist.
        return not name.lower().endswith((".yaml", ".yml")) and (self._folder.path / name).is_file()

    def describe(self, one: Configured) -> InstalledModel:
        """Return a configured model with the size of its files. Blocks."""
        return InstalledModel(
            name=one.name,
            config_file=one.file,
            model_file=one.model_file,
            backend=one.backend,
            usecases=one.usecases,
            entry=one.entry,
            size=self._folder.size(one.uses),
        )


@dataclass(frozen=True, slots=True)
class InstalledNames:
    """Which entries are installed."""

    entries: frozenset[str]
    config_files: frozenset[str]

    def has(self, gallery: str, entry: str) -> bool:
        """Return whether an entry is installed, under its own name or another."""
        return f"{gallery}@{entry}".lower() in self.entries or f"{entry}.yaml" in self.config_files


def _distinct(models: Iterable[InstalledModel]) -> Iterable[InstalledModel]:
    """Leave out further models of the same name: a name identifies a model."""
    seen: set[str] = set()
    for one in models:
        if one.name not in seen:
            seen.add(one.name)
            yield one
