"""Importing a library without what it takes along for people at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Let imports of these fail, as if they were not installed, unless they are imported already.

    structlog (for tracebacks in colour) and httpx (for a command line of its own) import rich, pygments
    and click when they are there, which they are for `corral`: 4 MiB each, in services that never use it.
    """
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
