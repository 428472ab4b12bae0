"""Which backends may hold a model, and in which order. Pure, except for reading the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.common.errors import BackendNotFoundError, Resource
from services.loader.models.config import ModelConfig
from services.loader.models.file_format import GGUF, model_format

from .backend import Backend
from .catalog import BackendCatalog
from .known_engines import LLM
from .names import base_name

_FIRST = {"llama-cpp": 0, "llama-ggml": 1}
_LAST = "huggingface"
"""It calls a service on the network: LocalAI 2 tries it last."""
_LANGUAGE = frozenset((*LLM, "embeddings"))
"""Use case of a GGUF file whose configuration does not give one: LocalAI's rule."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The backends to try for a model."""

    names: tuple[str, ...]
    """The first is tried first; each is the name of a program or an address of its own."""
    excluded: Mapping[str, str] = field(default_factory=dict)
    """The other backends, and why each of them is not tried."""


def select_from(catalog: BackendCatalog, config: ModelConfig, model_file: Path) -> Selection:
    """Return the result of `select`; if no backend is left, first scan for one just installed."""
    try:
        return select(config, model_file, catalog.backends(), catalog.find)
    except BackendNotFoundError:
        catalog.look_again()
        return select(config, model_file, catalog.backends(), catalog.find)


def select(
    config: ModelConfig,
    model_file: Path,
    backends: Mapping[str, Backend],
    find: Callable[[str], Backend],
) -> Selection:
    """Return the backends to try: the one that the configuration names, or those that suit the
    file.

    Raises BackendNotFoundError for an unknown name, or when no backend is left; the message then
    gives the reason for each one that is not tried.
    """
    if config.backend:
        named = find(config.backend)
        return Selection(tuple(filter(None, (named.name, named.fallback))))
    kind = model_format(model_file)
    wanted = _wanted(config, kind)
    excluded: dict[str, str] = {}
    suitable: list[Backend] = []
    silent: list[Backend] = []
    for name, item in sorted(backends.items()):
        if item.chosen:
            continue  # it is looked at under its own name
        if why := _excluded(item, kind, wanted, backends):
            excluded[name] = why
        elif kind and not item.formats:
            silent.append(item)
        else:
            suitable.append(item)
    if suitable:
        # A backend that does not declare its formats is better than none, and worse than one that
        # does.
        why = f"it does not list {kind} files among those it reads, and others do"
        excluded |= {item.name: why for item in silent}
    else:
        suitable = silent
    if not suitable:
        raise _none_left(config, kind, wanted, excluded)
    suitable.sort(key=lambda item: _order(item, wanted))
    names = [name for item in suitable for name in (item.name, item.fallback) if name]
    return Selection(tuple(dict.fromkeys(names)), excluded)


def _wanted(config: ModelConfig, kind: str) -> frozenset[str]:
    """Return the model's use cases; empty if unknown."""
    declared = {name.lower().removeprefix("flag_") for name in config.known_usecases}
    if "any" in declared:
        return frozenset()
    if "llm" in declared:
        declared = declared - {"llm"} | set(LLM)
    if config.embeddings:
        declared.add("embeddings")
    if config.reranking:
        declared.add("rerank")
    return frozenset(declared) or (_LANGUAGE if kind == GGUF else frozenset())


def _excluded(
    item: Backend, kind: str, wanted: frozenset[str], backends: Mapping[str, Backend]
) -> str:
    """Return why a backend is not tried; empty if it may be."""
    if item.unusable:
        return item.unusable
    if not item.automatic:
        return "it is used only by models that name it"
    group = backends.get(item.group)
    if group is not None and group.chosen not in ("", item.name):
        return f"{item.group} is {group.chosen} on this machine"
    if kind and item.formats and kind not in item.formats:
        return f"it reads {' and '.join(item.formats)} files, not {kind}"
    if wanted and item.usecases and not wanted & set(item.usecases):
        return f"it is for {' and '.join(item.usecases)}, not for {' or '.join(sorted(wanted))}"
    return ""


def _order(item: Backend, wanted: frozenset[str]) -> tuple[object, ...]:
    engine = base_name(item.name)
    language = not wanted or wanted & _LANGUAGE
    return (
        engine == _LAST,
        _FIRST.get(engine, len(_FIRST)) if language else 0,
        not wanted <= set(item.usecases),
        item.name,
    )


def _none_left(
    config: ModelConfig, kind: str, wanted: frozenset[str], excluded: Mapping[str, str]
) -> BackendNotFoundError:
    what = f"reads {kind} files" if kind else "is installed that may be tried"
    purpose = f" for {' or '.join(sorted(wanted))}" if wanted else ""
    reasons = "".join(f"\n[{name}]: {why}" for name, why in excluded.items())
    return BackendNotFoundError(
        f"no backends found: none {what}{purpose}; install one, or name it with `backend:` in the"
        f" model's configuration (model {config.name!r}){reasons}",
        resource=Resource("backend", kind),
        metadata={"model": config.name, "format": kind},
    )
