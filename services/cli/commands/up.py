"""`corral up`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from services.cli import invoke
from services.cli.display.output import Output

from .parameters import JsonFlag, duration_option


class LogLevel(StrEnum):
    """The lowest level to log."""

    trace = "trace"
    debug = "debug"
    info = "info"
    warn = "warn"
    error = "error"


class LogFormat(StrEnum):
    """How the log is written."""

    console = "console"
    json = "json"


def _folder(help: str, metavar: str = "FOLDER") -> Any:
    return typer.Option(metavar=metavar, help=help, rich_help_panel="Folders and backends")


def _listen(flag: str, help: str) -> Any:
    return typer.Option(
        flag, metavar="ADDRESS", help=help, show_default=False, rich_help_panel="Where they listen"
    )


ModelsPath = Annotated[str | None, _folder("The models folder.")]
BackendsPath = Annotated[
    list[str] | None,
    _folder("A folder of backends; repeatable. New ones are installed into the first."),
]
ExternalBackend = Annotated[
    list[str] | None,
    _folder(
        "A backend that is not installed: the path of a program, or the address of a running"
        " backend; repeatable.",
        metavar="NAME=URI",
    ),
]
StatePath = Annotated[
    str | None, _folder("The folder for what must be kept when the services restart.")
]
Config = Annotated[
    str | None, typer.Option(metavar="FILE", help="Settings of the services, YAML or TOML.")
]
Listen = Annotated[
    str | None,
    _listen(
        "--listen",
        "All services: host:port takes five ports from there on (loader, gallery, monitor,"
        " metrics, Prometheus), port 0 takes free ones, unix:FOLDER makes sockets there.",
    ),
]
LoaderListen = Annotated[str | None, _listen("--loader-listen", "The loader [127.0.0.1:50051].")]
GalleryListen = Annotated[str | None, _listen("--gallery-listen", "The gallery [127.0.0.1:50052].")]
MonitorListen = Annotated[str | None, _listen("--monitor-listen", "The monitor [127.0.0.1:50053].")]
MetricsListen = Annotated[
    str | None, _listen("--metrics-listen", "The metrics service [127.0.0.1:50054].")
]
HttpListen = Annotated[
    str | None, _listen("--metrics-http-listen", "Its /metrics page [127.0.0.1:9464].")
]


def up(
    models_path: ModelsPath = None,
    backends_path: BackendsPath = None,
    external_backend: ExternalBackend = None,
    state_path: StatePath = None,
    config: Config = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            metavar="LEVEL", help="The lowest level to log: trace, debug, info, warn or error."
        ),
    ] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(metavar="FORMAT", help="console, for people, or json.")
    ] = None,
    stop_timeout: Annotated[
        float,
        duration_option("--stop-timeout", "Kill a service that takes longer to stop.", "70s"),
    ] = 70.0,
    listen: Listen = None,
    loader_listen: LoaderListen = None,
    gallery_listen: GalleryListen = None,
    monitor_listen: MonitorListen = None,
    metrics_listen: MetricsListen = None,
    metrics_http_listen: HttpListen = None,
    json: JsonFlag = False,
) -> None:
    """Start loader, gallery, monitor and metrics, and keep them running until Ctrl-C.

    A service that ends is started again. While this runs, other commands find the services by themselves.
    """
    out = Output(as_json=json)

    def work() -> None:
        from services.cli.actions import up as action
        from services.cli.stack.arguments import Options
        from services.cli.stack.supervisor import Limits

        options = Options(
            listen=listen,
            listens=_given(
                loader=loader_listen,
                gallery=gallery_listen,
                monitor=monitor_listen,
                metrics=metrics_listen,
                http=metrics_http_listen,
            ),
            models_path=models_path,
            backends_path=tuple(backends_path or ()),
            external_backend=tuple(external_backend or ()),
            state_path=state_path,
            log_level=log_level,
            log_format=log_format,
            config=config,
        )
        action.up(out, options, limits=Limits(stop_timeout=stop_timeout))

    invoke.guarded(work, out)


def _given(**addresses: str | None) -> dict[str, str]:
    return {name: address for name, address in addresses.items() if address}
