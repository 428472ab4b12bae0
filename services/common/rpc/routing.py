"""The gRPC metadata that names the model of a call."""

from __future__ import annotations

from typing import Final

MODEL_KEY: Final = "corral-model"
MODEL_KEY_BINARY: Final = "corral-model-bin"
"""For names that are not ASCII, which gRPC allows only in binary metadata; in UTF-8."""


def model_metadata(name: str) -> dict[str, str | bytes]:
    """Return the metadata that names a model."""
    if name.isascii() and name.isprintable():
        return {MODEL_KEY: name}
    return {MODEL_KEY_BINARY: name.encode()}
