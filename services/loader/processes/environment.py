"""The environment of a backend process."""

from __future__ import annotations

from collections.abc import Mapping

_OURS = "CORRAL_"
PYTHON_VARIABLE = "CORRAL_PYTHON"
_PARENT_WATCH = "LOCALAI_BACKEND_PARENT_WATCH"


def backend_environment(
    inherited: Mapping[str, str], marker: str, python: str, *, outlives: bool = False
) -> dict[str, str]:
    """Return the environment that all backends of this loader share.

    It is the loader's own without its settings, plus the marker by which the guard finds every
    descendant, and the interpreter that a backend written in Python may run in (`CORRAL_PYTHON`).
    Backends that may outlive the loader get a variable that keeps them from ending with their
    parent.
    """
    environment = {name: value for name, value in inherited.items() if not name.startswith(_OURS)}
    name, _, value = marker.partition("=")
    environment[name] = value
    environment[PYTHON_VARIABLE] = python
    # Otherwise CUDA counts the fastest GPU first, and `gpu0` would not be the driver's.
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if outlives:
        environment[_PARENT_WATCH] = "false"
    # A Python backend that prints would otherwise buffer its lines up to 8 KiB.
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return environment
