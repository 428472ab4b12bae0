"""`corral-gallery`: the process of the gallery."""

from __future__ import annotations

import sys

from services.common.rpc.service import run_service

from .config import GallerySettings
from .wiring import build


def main() -> int:
    """Run the service; return its exit code."""
    return run_service(GallerySettings, build)


if __name__ == "__main__":
    sys.exit(main())
