"""LoadModel's request: the effective options of a model as the message of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corral.backend import backend_pb2


def message(options: Mapping[str, Any]) -> backend_pb2.ModelOptions:
    """Return the request with these values, by its fields."""
    return backend_pb2.ModelOptions(**options)
