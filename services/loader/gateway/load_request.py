"""The LoadModel request: a model's effective options as a `ModelOptions` message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corral.backend import backend_pb2


def message(options: Mapping[str, Any]) -> backend_pb2.ModelOptions:
    """Return the request with these field values."""
    return backend_pb2.ModelOptions(**options)
