"""`corral up` with fake services: run as `python -m tests.fakes.up_standins`.

Takes `NAME=VALUE` for the fields of Options, and `json`.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from services.cli import invoke
from services.cli.actions import up
from services.cli.display.output import Output
from services.cli.stack.arguments import Options
from services.cli.stack.supervisor import Limits
from services.common.backoff import Backoff

LIMITS = Limits(
    start_timeout=3,
    stop_timeout=1.5,
    stable_after=30,
    most_restarts=2,
    backoff=Backoff(initial=0.05, maximum=0.1),
)


def main() -> int:
    words: dict[str, Any] = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    out = Output(as_json="json" in sys.argv)
    try:
        invoke.guarded(
            lambda: up.up(
                out,
                Options(**words),
                limits=LIMITS,
                command=lambda service: [sys.executable, "-m", "tests.fakes.standin", service],
            ),
            out,
        )
    except typer.Exit as exit:
        return exit.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
