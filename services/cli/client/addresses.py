"""The services' addresses: given by the user, written down by `corral up`, or the defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from services.cli.failures import Failure
from services.common.addresses import validate_address
from services.common.errors import InvalidRequestError
from services.common.files import write_atomically

Service: TypeAlias = Literal["loader", "gallery", "monitor", "metrics"]

SERVICES: Final[tuple[Service, ...]] = ("loader", "gallery", "monitor", "metrics")
DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORTS: Final[Mapping[Service, int]] = {
    "loader": 50051,
    "gallery": 50052,
    "monitor": 50053,
    "metrics": 50054,
}
DEFAULT_HTTP_PORT: Final = 9464


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """One service's address, and its source."""

    service: Service
    address: str
    source: Literal["given", "up", "default"]


@dataclass(frozen=True, slots=True)
class Running:
    """A running `corral up`, as it wrote itself down."""

    pid: int
    started: float
    addresses: Mapping[str, str]
    """By service; and `http`, the metrics' address for Prometheus."""

    def to_json(self) -> dict[str, Any]:
        """Return the file's contents."""
        return {"pid": self.pid, "started": self.started, "addresses": dict(self.addresses)}


def addresses_file(home: Path) -> Path:
    """Return the file in which `corral up` writes down the addresses."""
    return home / "run" / "endpoints.json"


def write(path: Path, running: Running) -> None:
    """Write the file whole or not at all."""
    write_atomically(path, json.dumps(running.to_json(), indent=2) + "\n")


def remove(path: Path, pid: int) -> None:
    """Remove the file if it is this process's own."""
    running = _parse(path)
    if running is not None and running.pid == pid:
        with suppress(FileNotFoundError):
            path.unlink()


def read(path: Path) -> Running | None:
    """Return the running `corral up`, if any; a file left behind by a dead process is ignored."""
    running = _parse(path)
    return running if running is not None and _alive(running) else None


def resolve(given: Mapping[str, str | None], home: Path) -> dict[Service, ServiceAddress]:
    """Return each service's address. `given` holds the addresses that the user gave, by service."""
    running = read(addresses_file(home))
    found: dict[Service, ServiceAddress] = {}
    for service in SERVICES:
        if text := given.get(service):
            found[service] = ServiceAddress(service, _checked(service, text), "given")
        elif running is not None and (address := running.addresses.get(service)):
            found[service] = ServiceAddress(service, address, "up")
        else:
            address = f"{DEFAULT_HOST}:{DEFAULT_PORTS[service]}"
            found[service] = ServiceAddress(service, address, "default")
    return found


def start_time(pid: int) -> float:
    """Return when a process was started, or 0 if there is no such process."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def _checked(service: Service, text: str) -> str:
    try:
        return validate_address(text)
    except InvalidRequestError as error:
        raise Failure(
            f"--{service}: {error.violations[0].description}",
            f"give the address at which the {service} listens",
            exit_code=2,
            reason="INVALID_ADDRESS",
        ) from None


def _parse(path: Path) -> Running | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        addresses = {str(key): str(value) for key, value in data["addresses"].items()}
        return Running(int(data["pid"]), float(data["started"]), addresses)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _alive(running: Running) -> bool:
    # The pid alone is not enough: after a crash and a reboot it may belong to anything. A second of
    # tolerance, because the start time is computed from ticks since boot.
    return abs(start_time(running.pid) - running.started) < 1.0
