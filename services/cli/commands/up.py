"""`corral up`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from services.cli import invoke
from services.cli.display.output import Output

from .parameters import JsonFlag, duration_option

_ADDRESSES = "Where they listen"
_FOLDERS = "Folders and backends"


class LogLevel(StrEnum):
    """The least serious lines to log."""

    trace = "trace"
    debug = "debug"
    info = "info"
    warn = "warn"
    error = "error"


class LogFormat(StrEnum):
    """How the log is written."""

    console = "console"
    json = "json"


def _listen(flag: str, help: str) -> Any:
    return typer.Option(
        flag, metavar="ADDRESS", help=help, show_default=False, rich_help_panel=_ADDRESSES
    )


def up(
    models_path: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The models folder.", rich_help_panel=_FOLDERS),
    ] = None,
    backends_path: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="A folder of backends; repeatable. Installed ones go into the first.",
            rich_help_panel=_FOLDERS,
        ),
    ] = None,
    external_backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URI",
            help="A backend that is not installed: a program's path, or the address of one that"
            " runs; repeatable.",
            rich_help_panel=_FOLDERS,
        ),
    ] = None,
    state_path: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="The folder for what must outlive the services.",
            rich_help_panel=_FOLDERS,
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="Settings for the services, YAML or TOML.")
    ] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="The least serious lines.")] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="For people or machines.")] = None,
    stop_timeout: Annotated[
        float,
        duration_option("--stop-timeout", "Kill a service that takes longer to stop.", "70s"),
    ] = 70.0,
    listen: Annotated[
        str | None,
        _listen(
            "--listen",
            "For all: host:port takes five ports from there on (loader, gallery, monitor,"
            " metrics, Prometheus), port 0 takes free ones, unix:FOLDER makes sockets there.",
        ),
    ] = None,
    loader_listen: Annotated[
        str | None, _listen("--loader-listen", "The loader; 127.0.0.1:50051 if nothing is said.")
    ] = None,
    gallery_listen: Annotated[
        str | None, _listen("--gallery-listen", "The gallery; 127.0.0.1:50052.")
    ] = None,
    monitor_listen: Annotated[
        str | None, _listen("--monitor-listen", "The monitor; 127.0.0.1:50053.")
    ] = None,
    metrics_listen: Annotated[
        str | None, _listen("--metrics-listen", "The metrics service; 127.0.0.1:50054.")
    ] = None,
    metrics_http_listen: Annotated[
        str | None, _listen("--metrics-http-listen", "Its /metrics; 127.0.0.1:9464.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Start loader, gallery, monitor and metrics, and keep them running until Ctrl-C.

    A service that ends is started again. Other commands find the services by themselves while this runs.
    """
    out = Output(as_json=json)

    def work() -> None:
        from services.cli.actions import up as action
        from services.cli.stack.arguments import Options
        from services.cli.stack.supervisor import Limits

        listens = {
            "loader": loader_listen,
            "gallery": gallery_listen,
            "monitor": monitor_listen,
            "metrics": metrics_listen,
            "http": metrics_http_listen,
        }
        options = Options(
            listen=listen,
            listens={name: text for name, text in listens.items() if text},
            models_path=models_path,
            backends_path=tuple(backends_path or ()),
            external_backend=tuple(external_backend or ()),
            state_path=state_path,
            log_level=log_level.value if log_level else None,
            log_format=log_format.value if log_format else None,
            config=config,
        )
        action.up(out, options, limits=Limits(stop_timeout=stop_timeout))

    invoke.guarded(work, out)
