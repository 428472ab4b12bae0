"""A real loader for tests, with its folders and scripted backends."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from corral.backend import backend_pb2_grpc
from corral.loader.v1 import loader_pb2_grpc
from tests.fakes import backend_fake
from tests.tools.processes import alive, processes_in
from tests.tools.service import Service, start_service
from tests.tools.waiting import eventually

__all__ = ["LoaderUnderTest", "alive", "eventually", "processes_in"]


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
        (self.backends / name / backend_fake.BEHAVIOUR).write_text(
            json.dumps({**backend_fake.FOREIGN, **behaviour})
        )

    def notes(self, name: str) -> list[str]:
        """Return the scripted backend's notes."""
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
