"""`corral logs`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from services.cli import invoke

from .parameters import JsonFlag, LoaderAddress, ModelName


class Level(StrEnum):
    """How serious a line is at least."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Stream(StrEnum):
    """Which pipe a line came from."""

    STDOUT = "stdout"
    STDERR = "stderr"
    LOADER = "loader"


def logs(
    model: ModelName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")
    ] = False,
    tail: Annotated[
        int, typer.Option("--tail", "-n", min=0, metavar="N", help="At most so many old lines.")
    ] = 0,
    level: Annotated[
        Level | None,
        typer.Option(help="Only lines that say they are so serious at least.", show_default=False),
    ] = None,
    stream: Annotated[
        list[Stream] | None,
        typer.Option(help="Only lines of this pipe, or the loader's own; repeatable."),
    ] = None,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
) -> None:
    """Show what a model's backend wrote to stdout and stderr, over its restarts."""
    from services.cli.actions import logs as action

    wanted = action.Wanted(
        model, follow=follow, tail=tail, level=level or "", streams=tuple(stream or ())
    )
    invoke.run(
        lambda clients, out: action.show(clients, out, wanted),
        as_json=json,
        addresses={"loader": loader},
        model=model,
    )
