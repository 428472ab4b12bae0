"""`corral logs`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from services.cli import invoke

from .parameters import JsonFlag, LoaderAddress, ModelName


class Level(StrEnum):
    """The lowest level to show."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Stream(StrEnum):
    """The pipe that a line came from, or the loader."""

    STDOUT = "stdout"
    STDERR = "stderr"
    LOADER = "loader"


def logs(
    model: ModelName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show new lines too, until Ctrl-C.")
    ] = False,
    tail: Annotated[
        int,
        typer.Option(
            "--tail", "-n", min=0, metavar="N", help="The last N lines only; 0 shows all."
        ),
    ] = 0,
    level: Annotated[
        Level | None,
        typer.Option(help="Only lines of this level or above.", show_default=False),
    ] = None,
    stream: Annotated[
        list[Stream] | None,
        typer.Option(help="Only stdout, stderr or the loader's own lines; repeatable."),
    ] = None,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
) -> None:
    """Show what a model's backend wrote to stdout and stderr, including earlier runs."""
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
