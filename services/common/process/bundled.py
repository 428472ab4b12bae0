"""The folder of the backends bundled with Corral."""

from __future__ import annotations

import sysconfig
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[3] / "backends"


def bundled_backends() -> Path:
    """Return the folder of the bundled backends: in a checkout, or in the environment."""
    if (_CHECKOUT / "README.md").is_file():
        return _CHECKOUT
    return Path(sysconfig.get_path("data")) / "share" / "corral" / "backends"
