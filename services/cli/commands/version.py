"""`corral version` and `corral --version`."""

from __future__ import annotations

from importlib import metadata

import typer

from services.cli.display.output import Output

from .parameters import JsonFlag


def version(json: JsonFlag = False) -> None:
    """Print the versions of Corral, Python and gRPC."""
    out = Output(as_json=json)
    facts = {"corral": metadata.version("corral"), **_others()}
    if json:
        out.emit(facts)
    else:
        for name, text in facts.items():
            out.line(f"{name} {text}")


def print_version(value: bool) -> None:
    """Print one line and exit, for `--version`."""
    if value:
        typer.echo(f"corral {metadata.version('corral')}")
        raise typer.Exit


def _others() -> dict[str, str]:
    import platform

    return {"python": platform.python_version(), "grpc": metadata.version("grpcio")}
