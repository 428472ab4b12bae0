"""The entry point of `corral` and of `python -m services.cli`."""

from __future__ import annotations

import io
import os
import sys

from .app import app


def main() -> None:
    """Run one command and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that lacks a character shows a question mark, and the command goes on.
            stream.reconfigure(errors="replace")
    try:
        try:
            app(prog_name="corral")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`corral models | head`). Python flushes stdout once more at exit and
        # would complain then, so it gets something that takes everything.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
