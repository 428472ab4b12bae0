"""OpenTelemetry names converted to valid Prometheus names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from services.common.errors import InvalidRequestError

from .family import Kind

_NOT_IN_NAME: Final = re.compile(r"[^a-zA-Z0-9_:]+")
_NOT_IN_LABEL: Final = re.compile(r"[^a-zA-Z0-9_]+")
# Labels that the exposition formats add themselves.
_RESERVED: Final = ("le", "quantile")


def metric_name(name: str, kind: Kind) -> str:
    """Return the family's name: invalid characters become `_`, and no unit is appended."""
    made = _NOT_IN_NAME.sub("_", name)
    if kind is Kind.COUNTER:
        made = made.removesuffix("_total")
    if not made.strip("_"):
        raise InvalidRequestError(f"{name!r} is not a metric's name")
    return f"_{made}" if made[0].isdigit() else made


def label_names(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels with valid names; values whose names become equal are joined by `;`."""
    made: dict[str, str] = {}
    for name, value in sorted(labels.items()):
        key = _NOT_IN_LABEL.sub("_", name) or "_"
        if key in _RESERVED or key.startswith("__"):
            key = f"exported_{key.lstrip('_')}"
        if key[0].isdigit():
            key = f"_{key}"
        made[key] = f"{made[key]};{value}" if key in made else value
    return made


def sample_names(name: str, kind: Kind) -> tuple[str, ...]:
    """Return the family's sample names in a scrape; no two families may share one."""
    match kind:
        case Kind.COUNTER:
            return (name, f"{name}_total")
        case Kind.GAUGE:
            return (name,)
        case Kind.HISTOGRAM:
            return (name, f"{name}_bucket", f"{name}_count", f"{name}_sum")
