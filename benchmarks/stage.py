"""Everything that is measured, running side by side: backends, a loader in front of them, bare proxies."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from corral.loader.v1 import loader_pb2 as pb
from tests.tools.processes import free_port
from tests.tools.running import LoaderUnderTest
from tests.tools.service import environment

from . import native
from .clocks import tree
from .figures import load, named
from .generator import Load, LoadError, Metadata, Sample, generate
from .paths import BARE, DIRECT, ENDPOINT, GATEWAY, PATHS, RESOLVED, SPLICE

READY_TIMEOUT = 20.0
TOKEN = "bench"
FOLDER = Path(__file__).parent
PYTHON = [sys.executable, "-P"]
"""`-P`: do not import from the program's own folder, whose modules might hide others."""
BACKENDS: dict[str, list[str]] = {
    "C++": [str(native.BACKEND)],
    "Python": [*PYTHON, str(FOLDER / "backends" / "echo.py")],
}

Place = tuple[str, Metadata]
"""The address to call, and the metadata."""


@dataclass(frozen=True)
class Route:
    """A route to a backend."""

    name: str
    backend: str
    find: Callable[[], Awaitable[Place]]
    between: Callable[[], list[int]] = field(default=list)
    behind: Callable[[], list[int]] = field(default=list)
    instead: dict[str, Any] = field(default_factory=dict)
    """The fields of a `Load` that differ on this route: a peer's method and request."""

    async def measure(self, load: Load) -> Sample:
        """Run a load over the route, again if it failed. Raises LoadError, and whatever `find` raises."""
        target, metadata = await self.find()
        own = replace(load, **self.instead)
        pids = {"between": self.between(), "backend": self.behind()}
        try:
            return await generate(own, target, metadata, **pids)
        except LoadError:  # a machine that is busy for a moment must not fail the run
            return await generate(own, target, metadata, **pids)


def model_of(backend: str) -> str:
    """Return the name of this backend's model."""
    return "m-" + backend.replace("+", "p").lower()


class Stage:
    """A loader with a model for each backend, and the same backends without a loader."""

    def __init__(self, home: Path, stack: AsyncExitStack, backends: tuple[str, ...]) -> None:
        """Create the folders below `home`; `stack` ends what is started."""
        self.home = home
        self.loader = LoaderUnderTest(home)
        self.backends = backends
        self._stack = stack
        self._instances: dict[str, int] = {}
        for backend in backends:
            add_backend(self.loader, model_of(backend), BACKENDS[backend])
            self.loader.add_model(model_of(backend), model_of(backend))

    async def start_loader(self, *options: str) -> None:
        """Start the loader and load the models."""
        runtime = {"CORRAL_LOADER_RUNTIME_PATH": str(self.home / "run")}
        await self.loader.start("--log-level", "warn", *options, env=runtime)
        self._stack.push_async_callback(self.loader.close)
        for backend in self.backends:
            model = await load(self.loader, model_of(backend))
            self._instances[backend] = model.instances[0].pid

    def loader_pids(self) -> list[int]:
        """Return the loader's processes without its backends."""
        return tree(self.loader.service.pid, *self._instances.values())

    def instance_pids(self, backend: str) -> list[int]:
        """Return the processes of the instance that the loader started."""
        return tree(self._instances[backend])

    def all_pids(self) -> list[int]:
        """Return the loader's processes with its backends."""
        return tree(self.loader.service.pid)

    async def direct(self, backend: str) -> Route:
        """Start a backend without a loader, and return the route to it."""
        socket = f"unix:{self.home}/{model_of(backend)}.sock"
        process = await self.start(
            *BACKENDS[backend], "--addr", socket, session=True, LOCALAI_GRPC_AUTH_TOKEN=TOKEN
        )
        return Route(DIRECT, backend, _fixed(socket, _BEARER), behind=lambda: tree(process.pid))

    async def proxy(
        self, direct: Route, name: str, program: str, listen: str, *options: str
    ) -> Route:
        """Start a proxy in front of a backend that has no loader, and return the route through it."""
        to, metadata = await direct.find()
        process = await self.start(
            *PYTHON, str(FOLDER / program), "--listen", listen, "--backend", to, *options
        )
        return Route(
            name, direct.backend, _fixed(listen, metadata), lambda: tree(process.pid), direct.behind
        )

    def gateway(self, backend: str) -> Route:
        """Return the route through the gateway."""
        place = _fixed(self.loader.service.address, named(model_of(backend)))
        return self._own(GATEWAY, backend, place, self.loader_pids)

    def endpoint(self, backend: str) -> Route:
        """Return the route through the model's own address."""

        async def find() -> Place:
            request = pb.GetModelRequest(name=model_of(backend))
            model = (await self.loader.control.GetModel(request)).model
            if not model.endpoints:
                raise RuntimeError(f"the model has no endpoint: {model.endpoint_error}")
            return model.endpoints[0], ()

        return self._own(ENDPOINT, backend, find, self.loader_pids)

    def resolved(self, backend: str) -> Route:
        """Return the route to the address from ResolveModel, under a lease."""

        async def find() -> Place:
            request = pb.ResolveModelRequest(name=model_of(backend))
            answer = await self.loader.control.ResolveModel(request)
            return answer.address, (("authorization", f"Bearer {answer.token}"),)

        return self._own(RESOLVED, backend, find, list)

    def _own(
        self,
        name: str,
        backend: str,
        find: Callable[[], Awaitable[Place]],
        between: Callable[[], list[int]],
    ) -> Route:
        return Route(name, backend, find, between, lambda: self.instance_pids(backend))

    async def start(
        self, *command: str, session: bool = False, **env: str
    ) -> asyncio.subprocess.Process:
        """Start a program, wait for its ready line, and end it with the stage.

        A backend gets its own session, as from the loader: the kernel may schedule by session.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=environment(**env),
            start_new_session=session,
        )
        self._stack.push_async_callback(_end, process)
        assert process.stdout is not None
        async with asyncio.timeout(READY_TIMEOUT):
            line = (await process.stdout.readline()).decode()
        if not line.startswith("ready"):
            program = command[len(PYTHON)] if command[0] == sys.executable else command[0]
            raise RuntimeError(f"{Path(program).name} did not start")
        return process


_BEARER: Metadata = (("authorization", f"Bearer {TOKEN}"),)


def _fixed(target: str, metadata: Metadata) -> Callable[[], Awaitable[Place]]:
    async def find() -> Place:
        return target, metadata

    return find


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


def add_backend(loader: LoaderUnderTest, name: str, command: list[str]) -> None:
    """Install a backend of this folder for a loader."""
    folder = loader.backends / name
    folder.mkdir()
    run = folder / "run.sh"
    run.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    run.chmod(0o755)
    (folder / "metadata.json").write_text(
        json.dumps({"name": name, "corral": {"addresses": ["unix", "tcp"], "announces": True}})
    )


@asynccontextmanager
async def stage(*backends: str) -> AsyncIterator[Stage]:
    """Create a stage with these backends, and remove it afterwards."""
    await native.build()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with AsyncExitStack() as stack:
            yield Stage(Path(folder) / "home", stack, backends)


async def routes(stage: Stage, backend: str, paths: tuple[str, ...] = PATHS) -> dict[str, Route]:
    """Return the routes to one backend, and start what they need; `direct` is always included.

    A route that cannot be started is included, and raises when it is measured.
    """
    direct = await stage.direct(backend)
    found = {DIRECT: direct}
    places = {
        BARE: ("floor_proxy.py", f"127.0.0.1:{free_port()}"),  # on TCP, like the loader
        SPLICE: ("floor_splice.py", f"unix:{stage.home}/{model_of(backend)}-s.sock"),
    }
    for name in paths:
        if name in (BARE, SPLICE):
            try:
                found[name] = await stage.proxy(direct, name, *places[name])
            except (OSError, RuntimeError, TimeoutError) as error:
                found[name] = Route(name, backend, _failing(error))
    own = {GATEWAY: stage.gateway, ENDPOINT: stage.endpoint, RESOLVED: stage.resolved}
    found |= {name: make(backend) for name, make in own.items() if name in paths}
    return {name: found[name] for name in PATHS if name in found}


def _failing(error: Exception) -> Callable[[], Awaitable[Place]]:
    async def find() -> Place:
        raise error

    return find
