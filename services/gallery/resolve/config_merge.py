"""Merges configurations as LocalAI does (Go's mergo with override)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.gallery.index.document import plain_mapping


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`; neither is changed, and nothing is shared with them.

    Maps are merged recursively. Everything else is replaced: lists as a whole, scalars also by `false`,
    `0` and `""`. An explicit null is kept as null.
    """
    result = plain_mapping(base)
    _merge(result, plain_mapping(over))
    return result


def model_config(base: Mapping[str, Any], name: str, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's configuration: `base`, then its name, then each layer in order.

    A layer may override `name`, as in LocalAI.
    """
    config = {**plain_mapping(base), "name": name}
    for layer in layers:
        _merge(config, plain_mapping(layer))
    # The name comes first, where readers look for it.
    return {"name": config.pop("name"), **config}


def _merge(target: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        mine = target.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            _merge(mine, value)
        else:
            target[key] = value
