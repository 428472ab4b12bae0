"""structlog, imported lean."""

from __future__ import annotations

from .lean_imports import without

with without("rich"):
    import structlog

__all__ = ["structlog"]
