"""Which backends may hold a model, in the order in which they are tried. Pure, but for one look at a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from services.common.errors import BackendNotFoundError

from .backend_catalog import Backend
from .model_config import ModelConfig

_MAGIC_FORMATS = {b"GGUF": "gguf"}
_GGUF_BACKENDS = ("llama-cpp", "ik-llama-cpp", "turboquant")
"""Backends known to read GGUF though their metadata does not say so (LocalAI's have no such field)."""


def file_format(path: Path) -> str:
    """Return the format that a file's first bytes show, such as `gguf`; empty if they show none."""
    try:
        with path.open("rb") as file:
            return _MAGIC_FORMATS.get(file.read(4), "")
    except OSError:
        return ""


def candidates(
    config: ModelConfig, model_file: Path, backends: Mapping[str, Backend]
) -> tuple[str, ...]:
    """Return the names of the backends to try for a model whose configuration names none.

    A file of a known format goes only to backends that read it; any other goes to all, in the order of
    their names, so that the choice is the same each time. Raises BackendNotFoundError if none is left.
    """
    usable = {name: backend for name, backend in sorted(backends.items()) if not backend.error}
    kind = file_format(model_file)
    if not kind:
        chosen = list(usable)
    else:
        chosen = [name for name, backend in usable.items() if kind in backend.formats]
        if kind == "gguf":
            chosen += [name for name in usable if _reads_gguf(name) and name not in chosen]
            chosen.sort(key=lambda name: name != "llama-cpp")
    if not chosen:
        what = f"reads {kind} files" if kind else "is installed"
        raise BackendNotFoundError(
            f"no backends found: none {what}; install one, or name it with `backend:` in the"
            f" model's configuration (model {config.name!r})"
        )
    return tuple(chosen)


def _reads_gguf(name: str) -> bool:
    return any(name == known or name.endswith(f"-{known}") for known in _GGUF_BACKENDS)
