"""Which files in a models folder are models without a configuration.

The loader loads them and the gallery lists them, so both must agree. The lists are LocalAI's (v2 and
HEAD), except for weights in one file (`.gguf`, `.ggml`, `.bin`): HEAD hides them, and so the files that
people put into the folder to try a model.
"""

from __future__ import annotations

from typing import Final

_NAMES: Final = frozenset({"model_card", "readme", "readme.md"})
_SUFFIXES: Final = (
    *(".tmpl", ".keep", ".yaml", ".yml", ".json", ".txt", ".md", ".ds_store", ".", ".safetensors"),
    *(".partial", ".tar.gz", ".pt", ".onnx", ".ckpt", ".zip", ".tag", ".bak"),
    # What browsers, download tools and editors leave while they work.
    *(".part", ".crdownload", ".aria2", ".tmp", ".swp", "~"),
)
_ANYWHERE: Final = ".bak"


def is_loose_model(name: str) -> bool:
    """Whether a file with this name is a model; hidden files and configurations are not."""
    lowered = name.lower()
    return not (
        lowered in _NAMES
        or lowered.startswith(".")
        or lowered.endswith(_SUFFIXES)
        or _ANYWHERE in lowered
    )
