"""Real processes for tests: start a service, wait for its ready line, end it, look for what is left."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil

from corral.backend import backend_pb2_grpc
from corral.loader.v1 import loader_pb2_grpc
from tests.fakes import backend_fake

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT = 20.0


async def eventually(
    condition: Callable[[], Any], *, timeout: float = 10.0, what: str = "the condition"
) -> Any:
    """Wait until the condition is true, and return what it returned; fail the test at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout} s"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return the living processes whose working folder is below `folder`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd().startswith(str(folder)):
                found.append(process)
    return found


class Service:
    """A running service process."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, log: Path) -> None:
        self.process = process
        self.address = address
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)

    async def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM and wait; return the exit code."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.process.wait(), timeout)
        except TimeoutError:
            self.kill()
            raise AssertionError(
                f"the service hangs in its stop:\n{self.log.read_text()}"
            ) from None


async def start_service(
    name: str,
    home: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> Service:
    """Start `services.<name>` on a free port; return when it has said that it is ready."""
    home.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a test may block
    log = home / f"{name}.log"
    command = [sys.executable, "-m", f"services.{name}"]
    if "--listen" not in arguments:
        command += ["--listen", "127.0.0.1:0"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CORRAL_", "LOCALAI_"))}
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env={**clean, "CORRAL_HOME": str(home), **(env or {})},
            pass_fds=pass_fds,
        )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), READY_TIMEOUT)).decode()
    assert line.startswith(f"ready {name} "), f"{name} said {line!r}:\n{log.read_text()}"
    return Service(process, line.split()[2], log)


class LoaderUnderTest:
    """A real loader, its folders, and clients for both of its services."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.models = home / "models"
        self.backends = home / "backends"
        self.models.mkdir(parents=True)
        self.backends.mkdir()
        self.service: Service
        self.channel: grpc.aio.Channel
        self.control: Any
        self.data: Any

    def add_backend(self, name: str, *, exec_: bool = True, **behaviour: Any) -> Path:
        """Install the scripted backend under a name; its behaviour may be changed later."""
        folder = self.backends / name
        folder.mkdir(exist_ok=True)
        command = shlex.join([sys.executable, backend_fake.__file__])
        run = folder / "run.sh"
        run.write_text(f'#!/bin/sh\n{"exec " if exec_ else ""}{command} "$@"\n')
        run.chmod(0o755)
        self.behave(name, **behaviour)
        return folder

    def behave(self, name: str, **behaviour: Any) -> None:
        (self.backends / name / backend_fake.BEHAVIOUR).write_text(json.dumps(behaviour))

    def notes(self, name: str) -> list[str]:
        """Return what the scripted backend noted."""
        file = self.backends / name / "notes.txt"
        return file.read_text().splitlines() if file.exists() else []

    def add_model(self, name: str, backend: str = "", **settings: Any) -> None:
        content = {"name": name, "parameters": {"model": f"{name}.bin"}, **settings}
        if backend:
            content["backend"] = backend
        (self.models / f"{name}.yaml").write_text(json.dumps(content))

    async def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.service = await start_service(
            "loader",
            self.home,
            "--models-path",
            str(self.models),
            "--backends-path",
            str(self.backends),
            "--metrics",
            "",
            *arguments,
            env=env,
            pass_fds=pass_fds,
        )
        self.channel = grpc.aio.insecure_channel(
            self.service.address,
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
        self.control = loader_pb2_grpc.LoaderServiceStub(self.channel)
        self.data = backend_pb2_grpc.BackendStub(self.channel)

    async def close(self) -> None:
        if hasattr(self, "channel"):
            await self.channel.close()
        if hasattr(self, "service"):
            if self.service.process.returncode is None:
                await self.service.stop()
            await self.service.process.communicate()
        for process in processes_in(self.home):
            process.kill()
