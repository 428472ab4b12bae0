"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from . import completion

_WHERE: Final = "Where the services are"
# Shown in place of a default, which is only known when the command runs.
_FOUND: Final = "as started by `corral up`"


def _address(service: str, port: int) -> Any:
    name = "The metrics service" if service == "metrics" else f"The {service}"
    return typer.Option(
        f"--{service}",
        envvar=f"CORRAL_{service.upper()}",
        metavar="ADDRESS",
        help=f"{name}: host:port or unix:/path.",
        show_default=f"{_FOUND}, or 127.0.0.1:{port}",
        rich_help_panel=_WHERE,
    )


def _duration(text: str) -> float:
    from services.common.quantities import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


JsonFlag = Annotated[
    bool,
    typer.Option(
        "--json", help="Write JSON to stdout: one object, or for streams one in each line."
    ),
]
LoaderAddress = Annotated[str | None, _address("loader", 50051)]
GalleryAddress = Annotated[str | None, _address("gallery", 50052)]
MonitorAddress = Annotated[str | None, _address("monitor", 50053)]
MetricsAddress = Annotated[str | None, _address("metrics", 50054)]
# For commands that ask the gallery only to advise after a failure.
AdvisingGallery = Annotated[
    str | None, typer.Option("--gallery", envvar="CORRAL_GALLERY", hidden=True)
]

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="The model's name, as `corral models` shows it.",
        autocompletion=completion.models,
        show_default=False,
    ),
]


def duration_option(flag: str, help: str, default: str) -> Any:
    """Return an option for a duration such as 90s or 15m, converted to seconds."""
    return typer.Option(flag, parser=_duration, metavar="DURATION", help=help, show_default=default)


Timeout = Annotated[
    float, duration_option("--timeout", "Give up after this long, for example 90s or 15m.", "10m")
]
