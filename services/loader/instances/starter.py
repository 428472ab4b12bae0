"""From an installed backend to one that answers: address, token, environment, process, readiness."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import BackendNotReadyError, CorralError
from services.common.line_splitter import LineSplitter
from services.common.process.logging import get_logger
from services.loader.logs.log_book import MAXIMUM_LINE, Level, LogBook, Stream
from services.loader.models.catalog import ModelEntry
from services.loader.processes.interface import Exit, Launcher, LineSink, ProcessSpec
from services.loader.processes.lookup import birth
from services.loader.processes.registry import ProcessRecord, ProcessRegistry

from .addresses import BackendAddresses
from .instance import Connection, Instance
from .readiness import PortTakenError, Readiness, start_error

_log = get_logger(__name__)

_PORT_ATTEMPTS = 3
"""Free ports to try: that one is taken in the moment before the backend binds it is rare already."""

STDERR_LINES = 5
"""Last lines of stderr to keep with the cause of an end: enough for an exception, short enough to read."""

TOKEN_VARIABLE = "LOCALAI_GRPC_AUTH_TOKEN"
LIBRARY_VARIABLE = "LD_LIBRARY_PATH"
_HUB_VARIABLES = ("HF_HOME", "TRANSFORMERS_CACHE", "HUGGINGFACE_HUB_CACHE")

Connect = Callable[[str, str], Connection]
"""Opens a fresh connection to an address, with a token."""


@dataclass(frozen=True, slots=True)
class StartLimits:
    """The timeouts of a start, in seconds, unless the model's configuration sets them."""

    attempts: int
    interval: float
    health: float

    def total(self, entry: ModelEntry) -> float:
        """Return how long this model's backend may take to answer."""
        grpc = entry.config.grpc
        return (grpc.attempts or self.attempts) * (grpc.attempts_sleep_time or self.interval)


class BackendStarter:
    """Starts local backends through a launcher, and connects to external ones."""

    def __init__(
        self,
        *,
        launcher: Launcher,
        connect: Connect,
        limits: StartLimits,
        environment: Mapping[str, str],
        models_path: Path,
        addresses: BackendAddresses,
        registry: ProcessRegistry,
        external_token: str = "",
    ) -> None:
        """`environment` is set for every backend; `registry` records each process."""
        self._launcher = launcher
        self._connect = connect
        self._limits = limits
        self._environment = dict(environment)
        self._models_path = models_path
        self._addresses = addresses
        self._registry = registry
        self._external_token = external_token

    async def start(self, instance: Instance, logs: LogBook) -> Connection:
        """Return the connection to a backend that answers Health. Raises CorralError."""
        if instance.backend.external:
            instance.assign(instance.backend.address, self._external_token)
            return await self._readiness(instance, logs).wait(None)
        for _ in range(_PORT_ATTEMPTS):
            try:
                return await self._launch(instance, logs)
            except PortTakenError:
                _log.warning("another process took the backend's port", address=instance.address)
                await self.stop(instance, graceful=False)
        raise BackendNotReadyError(
            f"grpc service not ready: backend {instance.backend.name} does not listen on the port it"
            " was given; is it a program that ignores --addr?"
        )

    async def adopt(self, instance: Instance, record: ProcessRecord, logs: LogBook) -> Connection:
        """Return the connection to a backend that an earlier loader started, if it answers Health.

        Raises CorralError; `stop` then ends what is there.
        """
        readiness = self._readiness(instance, logs, self._limits.health)
        sink = _sink(logs, instance.generation, readiness.announced)
        process = self._launcher.adopt(record.uid, record.pid, record.birth, sink)
        instance.attach(process)
        logs.append(
            Stream.LOADER,
            f"taking over {instance.backend.name} (process {record.pid}) on {instance.address}",
            instance.generation,
            Level.INFO,
        )
        try:
            return await readiness.wait(process)
        except (BackendNotReadyError, PortTakenError) as error:
            raise BackendNotReadyError(
                f"backend {instance.backend.name}, which an earlier loader left, does not answer Health"
                f" within {self._limits.health:g} s (health_timeout)"
            ) from error

    def loaded(self, instance: Instance) -> None:
        """Record the instance as loaded: the next loader can adopt it."""
        if instance.process is not None:
            self._record(instance, adoptable=instance.process.keep())

    async def leave(self, instance: Instance) -> bool:
        """Leave the instance for the next loader; False if it depends on this one."""
        if instance.process is None or not instance.process.leave():
            return False
        if instance.connection is not None:
            await instance.connection.close()
        return True

    async def stop(self, instance: Instance, *, graceful: bool) -> bool:
        """End the process group, if there is one; True when no process is left."""
        gone = instance.process is None or await instance.process.stop(graceful=graceful)
        if gone:
            self._registry.remove(instance.uid)
        if not instance.backend.external:
            self._addresses.give_back(instance.address)
        return gone

    async def _launch(self, instance: Instance, logs: LogBook) -> Connection:
        backend = instance.backend
        assert backend.run_file is not None
        addresses = self._addresses
        address = addresses.socket(instance.uid) if backend.takes_unix else addresses.port()
        instance.assign(address, secrets.token_urlsafe(32))
        readiness = self._readiness(instance, logs)
        sink = _sink(logs, instance.generation, readiness.announced)
        environment = {**self._environment, **backend.environment}
        environment[TOKEN_VARIABLE] = instance.token
        if backend.library_folders:
            folders = [environment.get(LIBRARY_VARIABLE, ""), *map(str, backend.library_folders)]
            environment[LIBRARY_VARIABLE] = ":".join(filter(None, folders))
        for name in _HUB_VARIABLES:
            # Unless set, libraries keep their downloads in the folder of the models.
            environment.setdefault(name, str(self._models_path))
        program = (str(backend.run_file),) if backend.interpreter else ()
        spec = ProcessSpec(
            uid=instance.uid,
            run_file=backend.interpreter or backend.run_file,
            arguments=(*program, "--addr", instance.address),
            environment=environment,
            folder=backend.run_file.parent,
        )
        logs.append(
            Stream.LOADER,
            f"starting {backend.name} ({backend.run_file}) on {instance.address}",
            instance.generation,
            Level.INFO,
        )
        process = await self._launcher.launch(spec, sink)
        instance.attach(process)
        self._record(instance, adoptable=False)
        return await readiness.wait(process)

    def _record(self, instance: Instance, *, adoptable: bool) -> None:
        """Record the instance's process as it is now, for the next loader."""
        pid = instance.pid
        born = birth(pid)
        if not born:
            return  # it has ended, or this system does not identify processes uniquely
        self._registry.write(
            ProcessRecord(
                uid=instance.uid,
                pid=pid,
                birth=born,
                loader=self._registry.loader,
                model=instance.model,
                model_revision=instance.entry.revision,
                backend=instance.backend.name,
                backend_revision=instance.backend.revision,
                run_file=str(instance.backend.run_file or ""),
                address=instance.address,
                token=instance.token,
                generation=instance.generation,
                started=instance.started,
                ready=instance.ready,
                load_message=instance.load_message,
                adoptable=adoptable,
            )
        )

    def _readiness(
        self, instance: Instance, logs: LogBook, timeout: float | None = None
    ) -> Readiness:
        def connect() -> Connection:
            return self._connect(instance.address, instance.token)

        def describe_exit(how: Exit) -> CorralError:
            lines = logs.tail(
                STDERR_LINES, generation=instance.generation, stream=Stream.STDERR
            ) or logs.tail(STDERR_LINES, generation=instance.generation, stream=Stream.STDOUT)
            return start_error(instance.backend.name, how, lines)

        return Readiness(
            instance.address,
            timeout=self._limits.total(instance.entry) if timeout is None else timeout,
            health_timeout=self._limits.health,
            connect=connect,
            describe_exit=describe_exit,
        )


def _is_announcement(line: str) -> bool:
    return line.startswith("ready ")


def _sink(logs: LogBook, generation: int, announced: asyncio.Event) -> LineSink:
    splitters = {name: LineSplitter(MAXIMUM_LINE) for name in ("stdout", "stderr")}

    def sink(pipe: str, chunk: bytes) -> None:
        lines = splitters[pipe].feed(chunk)
        if not lines:
            return
        logs.extend(Stream(pipe), lines, generation)
        if pipe == "stdout" and not announced.is_set() and any(map(_is_announcement, lines)):
            announced.set()

    return sink
