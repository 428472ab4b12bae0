"""The two ways in which a download fails that decide whether and where it is tried again."""

from __future__ import annotations

from services.common.errors import DownloadError


class UnreachableError(DownloadError):
    """The host cannot be reached: no such name, no route, or connection refused."""


class RefusedError(DownloadError):
    """The source answered, and would give the same answer again: a retry cannot succeed."""
