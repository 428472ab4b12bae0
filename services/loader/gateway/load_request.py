"""LoadModel's request: the effective options of a model as the message of the contract."""

from __future__ import annotations

from collections.abc import Mapping

from corral.backend import backend_pb2
from services.loader.options.defaults import Value


def message(values: Mapping[str, Value]) -> backend_pb2.ModelOptions:
    """Return the request with these values."""
    return backend_pb2.ModelOptions(**{field: value.value for field, value in values.items()})
