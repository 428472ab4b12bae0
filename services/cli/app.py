"""The Typer application: all commands under `corral`."""

from __future__ import annotations

from typing import Annotated

import typer

from . import invoke
from .commands import (
    backend,
    backends,
    drain,
    install,
    load,
    logs,
    models,
    operations,
    pin,
    plan,
    run,
    settings,
    status,
    unload,
    up,
    version,
)

app = typer.Typer(
    name="corral",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `corral up` in one terminal and `corral models --available` in another.",
)


@app.callback()
def corral(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=version.print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    traceback: Annotated[
        bool,
        typer.Option("--traceback", hidden=True, help="Show the traceback of an unexpected error."),
    ] = False,
) -> None:
    """Load, run, install and watch models: the command line of Corral's services."""
    invoke.show_tracebacks(traceback)


_START = "Services"
_MODELS = "Models"
app.command("up", rich_help_panel=_START)(up.up)
app.command("status", rich_help_panel=_START)(status.status)
app.command("backends", rich_help_panel=_START)(backends.backends)
app.add_typer(backend.app, name="backend", rich_help_panel=_START)
app.add_typer(settings.app, name="settings", rich_help_panel=_START)
app.command("drain", rich_help_panel=_START)(drain.drain)
app.command("version", rich_help_panel=_START)(version.version)
app.command("models", rich_help_panel=_MODELS)(models.models)
app.command("install", rich_help_panel=_MODELS)(install.install)
app.command("run", rich_help_panel=_MODELS)(run.run)
app.command("load", rich_help_panel=_MODELS)(load.load)
app.command("unload", rich_help_panel=_MODELS)(unload.unload)
app.command("logs", rich_help_panel=_MODELS)(logs.logs)
app.command("pin", rich_help_panel=_MODELS)(pin.pin)
app.command("unpin", rich_help_panel=_MODELS)(pin.unpin)
app.command("plan", rich_help_panel=_MODELS)(plan.plan)
app.add_typer(operations.app, name="operations", rich_help_panel=_MODELS)
