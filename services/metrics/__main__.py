"""`corral-metrics`: the process of the metrics service."""

from __future__ import annotations

import sys

from services.common.rpc.service import run_service

from .config import MetricsSettings
from .wiring import build


def main() -> int:
    """Run the service; return its exit code."""
    return run_service(MetricsSettings, build)


if __name__ == "__main__":
    sys.exit(main())
