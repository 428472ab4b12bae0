"""Running a backend that comes with Corral in place of the command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from services.cli.failures import Failure
from services.common.process.bundled import bundled_backends


def become(backend: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process with the backend's program, so that signals and exit code are the program's."""
    program = bundled_backends() / backend / "__main__.py"
    if not program.is_file():
        raise Failure(
            f"the program of the backend {backend} is missing: {program}",
            "reinstall Corral",
            reason="BACKEND_NOT_FOUND",
        )
    sys.stdout.flush()
    # -P: nothing in the program's folder may shadow a module of a library.
    os.execv(sys.executable, [sys.executable, "-P", str(program), *arguments])
