"""Laying one configuration over another, as LocalAI does (Go's mergo with override)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.gallery.index.document import plain_mapping


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it; neither is changed, and nothing is shared with them.

    Maps are merged, deep; everything else is replaced: lists as a whole, scalars also by `false`, `0`
    and `""`. An explicit null is kept as null.
    """
    result = plain_mapping(base)
    _lay(result, plain_mapping(over))
    return result


def model_config(base: Mapping[str, Any], name: str, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's configuration: `base` < its name < each layer in order.

    The name stands below the layers, so an override of `name` wins, as in LocalAI.
    """
    config = merge(base, {"name": name})
    for layer in layers:
        config = merge(config, layer)
    # The name first: that is where people look for it.
    return {"name": config.pop("name"), **config}


def _lay(target: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        mine = target.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            _lay(mine, value)
        else:
            target[key] = value
