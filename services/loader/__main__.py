"""`corral-loader`: serves the loader."""

from __future__ import annotations

import sys

from services.common.rpc.service import run_service

from .config import LoaderSettings
from .wiring import build


def main() -> int:
    """Run the loader; return the process's exit code."""
    return run_service(LoaderSettings, build, event_loop=lambda settings: settings.event_loop)


if __name__ == "__main__":
    sys.exit(main())
