"""Importing a library without its optional dependencies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Let imports of these fail as if they were not installed, unless they are imported already.

    structlog (for coloured tracebacks) and httpx (for its command line) import rich, pygments and click
    if they are installed, as they are for `corral`: 4 MiB in each service, which never uses them.
    """
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # makes the import fail
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
