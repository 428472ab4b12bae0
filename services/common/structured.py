"""structlog, without what it takes along for tracebacks in colour.

It imports rich and pygments when they are there (they are, for the command line): 4 MiB in each service,
and tracebacks that fill a screen of the log.
"""

from __future__ import annotations

import sys

__all__ = ["structlog"]

_absent = "rich" not in sys.modules
if _absent:
    sys.modules["rich"] = None  # type: ignore[assignment]  # an import of it fails, as if it were not there
try:
    import structlog
finally:
    if _absent:
        del sys.modules["rich"]
