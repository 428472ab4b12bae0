"""The fake backend alone, as `corral backend fake` starts it, without a loader."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc
from tests.fakes import backend_fake
from tests.tools.service import announced, environment


async def start(folder: Path, *arguments: str, **settings: object) -> asyncio.subprocess.Process:
    """Start the program with `settings` in its environment."""
    variables = {f"FAKE_{key.upper()}": str(value) for key, value in settings.items()}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(backend_fake.PROGRAM / "__main__.py"),
        *(arguments or ("--addr", "127.0.0.1:0")),
        cwd=folder,
        env=environment(**variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


class Running:
    """A running fake backend and a client of it."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process = process
        self.address = address
        self.channel = grpc.aio.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.stub: Any = backend_pb2_grpc.BackendStub(self.channel)

    async def load(self, name: str = "m") -> Any:
        return await self.stub.LoadModel(pb.ModelOptions(Model=name), timeout=10)

    async def ended(self) -> int:
        async with asyncio.timeout(10):
            return await self.process.wait()


@asynccontextmanager
async def serving(folder: Path, *arguments: str, **settings: object) -> AsyncIterator[Running]:
    """Start the backend and yield it with the address it printed."""
    process = await start(folder, *arguments, **settings)
    try:
        running = Running(process, await announced(process, "fake"))
        try:
            yield running
        finally:
            await running.channel.close()
    finally:
        if process.returncode is None:
            process.kill()
        # Read its pipes to EOF: the transport of a full pipe is closed too late.
        await process.communicate()
