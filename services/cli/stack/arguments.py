"""The command line of each service. Pure: options and addresses in, arguments out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.cli.client.addresses import DEFAULT_HOST, SERVICES, Service
from services.cli.failures import Failure
from services.common.addresses import Address, parse_address
from services.common.config import sources
from services.common.config.settings import ServiceSettings, describe
from services.common.errors import InvalidRequestError

# All services report to metrics and need its address; gallery and monitor need the loader's.
START_ORDER: Final[tuple[tuple[Service, ...], ...]] = (
    ("metrics",),
    ("loader",),
    ("gallery", "monitor"),
)
# Services that start work stop first; metrics stops last, so that the last calls are counted too.
STOP_ORDER: Final[tuple[tuple[Service, ...], ...]] = (
    ("monitor", "gallery"),
    ("loader",),
    ("metrics",),
)
# The order of the ports that follow the base of `--listen`.
_PORT_ORDER: Final[tuple[str, ...]] = (*SERVICES, "http")
_FOLDERS: Final[tuple[Service, ...]] = ("loader", "gallery")
MODULES: Final = tuple(f"services.{service}.__main__" for service in SERVICES)
"""The modules of the services' programs."""
_NEEDS_LOADER: Final[tuple[Service, ...]] = ("gallery", "monitor")


@dataclass(frozen=True, slots=True)
class Options:
    """The user's options for `corral up`; None and empty leave a setting to the service."""

    listen: str | None = None
    listens: Mapping[str, str] = field(default_factory=dict)
    """By service, and `http`; each takes precedence over `listen`."""
    models_path: str | None = None
    backends_path: tuple[str, ...] = ()
    external_backend: tuple[str, ...] = ()
    state_path: str | None = None
    log_level: str | None = None
    log_format: str | None = None
    config: str | None = None


def command(service: Service) -> list[str]:
    """Return the program of a service, without arguments."""
    return [sys.executable, "-m", f"services.{service}"]


def check(options: Options) -> None:
    """Raise Failure for addresses that cannot be listened on, before anything is started."""
    for name in _PORT_ORDER:
        if (text := listen_of(options, name)) is not None:
            flag = _flag(name) if options.listens.get(name) else "--listen"
            try:
                address = parse_address(text, field=flag, listen=True)
            except InvalidRequestError as error:
                raise _wrong(flag, error.violations[0].description) from None
            if name == "http" and address.is_unix:
                raise _wrong(flag, "Prometheus connects over TCP: give host:port")


def listen_of(options: Options, name: str) -> str | None:
    """Return the address for a service, or `http`, to listen on; None leaves it to its settings."""
    if text := options.listens.get(name):
        return _absolute(text)
    if not options.listen:
        return None
    try:
        base = parse_address(options.listen, field="--listen", listen=True)
    except InvalidRequestError as error:
        raise _wrong("--listen", error.violations[0].description) from None
    if base.is_unix:
        folder = os.path.abspath(base.path)
        return None if name == "http" else f"unix:{folder}/{name}.sock"
    port = base.port + _PORT_ORDER.index(name) if base.port else 0
    if port > 65535:
        raise _wrong("--listen", f"there are fewer than five ports from {base.port} on")
    return str(Address(host=base.host, port=port))


def for_service(
    service: Service,
    options: Options,
    known: Mapping[str, str],
    bound: Mapping[str, str],
) -> list[str]:
    """Return a service's arguments.

    `known` holds the addresses of the services that already serve. `bound` holds the addresses that
    the services (and `http`) had before: a restarted service must come back at the same address.
    """
    flags: list[tuple[str, str | None]] = [
        ("--listen", bound.get(service) or listen_of(options, service)),
        ("--state-path", options.state_path),
        ("--log-level", options.log_level),
        ("--log-format", options.log_format),
        ("--config", options.config),
    ]
    if service == "metrics":
        flags.append(("--http-listen", bound.get("http") or listen_of(options, "http")))
    else:
        flags.append(("--metrics", known.get("metrics")))
    if service in _NEEDS_LOADER:
        flags.append(("--loader", known.get("loader")))
    if service in _FOLDERS:
        flags.append(("--models-path", options.models_path))
        # The gallery installs into the first folder only; the loader searches all of them.
        paths = options.backends_path if service == "loader" else options.backends_path[:1]
        flags += [("--backends-path", path) for path in paths]
    if service == "loader":
        flags += [("--external-backend", text) for text in options.external_backend]
    return [f"{flag}={value}" for flag, value in flags if value is not None]


def reachable(address: str) -> str:
    """Return the address to call for a listening address, which may be "all interfaces"."""
    parsed = parse_address(address, listen=True)
    if parsed.host in ("0.0.0.0", "::"):
        # gRPC listens on both families at `::`, and a container may lack IPv6 on its loopback.
        return str(Address(host=DEFAULT_HOST, port=parsed.port))
    return str(parsed)


def metrics_state_path(options: Options, environ: Mapping[str, str]) -> Path:
    """Return the state folder of the metrics service, by the rules of its own settings."""
    if options.state_path:
        return Path(options.state_path).expanduser().absolute()
    docs = describe(_MetricsShared)
    layers = [sources.from_environment(docs, environ)]
    if file := options.config or environ.get("CORRAL_CONFIG"):
        layers.append(sources.from_file(docs, _MetricsShared.service, Path(file).expanduser()))
    for layer in layers:
        if text := layer.values.get("state_path"):
            return Path(str(text)).expanduser().absolute()
    return _MetricsShared().state_path


class _MetricsShared(ServiceSettings):
    """The settings that the metrics service has in common with the others."""

    service = "metrics"


def _flag(name: str) -> str:
    return "--metrics-http-listen" if name == "http" else f"--{name}-listen"


def _absolute(text: str) -> str:
    if text.startswith("unix:") and not text.startswith("unix:/"):
        return f"unix:{os.path.abspath(text.removeprefix('unix:'))}"
    return text


def _wrong(flag: str, text: str) -> Failure:
    return Failure(
        f"{flag}: {text}",
        "see `corral up --help`",
        exit_code=2,
        reason="INVALID_ADDRESS",
    )
