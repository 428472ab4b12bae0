"""Clients in their own processes that call Predict steadily, and report each call at the end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from .node import modules

__all__ = ["CALLERS", "Caller", "Calling", "Failure", "Told", "caller"]

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).with_name("programs")
PROTO = ROOT / "protos" / "corral" / "backend" / "backend.proto"
READY_TIMEOUT = 30.0
END_TIMEOUT = 60.0
"""Seconds, longer than the deadline of a call in progress."""
LARGEST_LINE = 256 * 1024 * 1024


@dataclass(frozen=True)
class Calling:
    """The calls that a client makes."""

    target: str
    metadata: tuple[tuple[str, str], ...] = ()
    workers: int = 1
    """Each makes one call after the other."""
    rate: float = 20.0
    """The most calls a second of each worker."""
    deadline: float = 20.0
    size: int = 64
    """Bytes of the prompt."""


@dataclass(frozen=True)
class Failure:
    """A call that failed, and when it began (CLOCK_MONOTONIC)."""

    at: float
    code: str
    text: str


@dataclass
class Told:
    """What a client reports at its end."""

    calls: list[tuple[float, float]]
    """When each call began and ended (CLOCK_MONOTONIC), including failed calls."""
    failures: list[Failure]


class Caller:
    """A running client."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """`process` is a client that has reported that it is ready."""
        self.process = process

    async def end(self) -> Told:
        """Let the client finish its calls, and return its report."""
        try:
            async with asyncio.timeout(END_TIMEOUT):
                out, err = await self.process.communicate(b"")
        except TimeoutError:
            raise RuntimeError("a client hangs") from None
        if self.process.returncode:
            raise RuntimeError(f"a client failed: {err.decode()[-2000:]}")
        said = json.loads(out)
        calls = [(began, ended) for began, ended in said["calls"]]
        return Told(calls, [Failure(**each) for each in said["failures"]])


async def _python(program: str, calling: Calling) -> tuple[list[str], dict[str, str]]:
    command = [sys.executable, str(PROGRAMS / program), json.dumps(asdict(calling))]
    return command, {"PYTHONPATH": str(ROOT / "sdk" / "python")}


async def _node(program: str, calling: Calling) -> tuple[list[str], dict[str, str]]:
    how = json.dumps({**asdict(calling), "proto": str(PROTO)})
    return ["node", str(PROGRAMS / program), how], {"NODE_PATH": str(await modules())}


CALLERS = {
    "grpcio sync": (_python, "grpcio_sync.py"),
    "grpcio aio": (_python, "grpcio_aio.py"),
    "grpc-js": (_node, "grpc_js.js"),
}


@asynccontextmanager
async def caller(name: str, calling: Calling) -> AsyncIterator[Caller]:
    """Start one of CALLERS and end it afterwards; raise UnavailableError if it is not available."""
    make, program = CALLERS[name]
    command, variables = await make(program, calling)
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **variables},
        limit=LARGEST_LINE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(READY_TIMEOUT):
            line = await process.stdout.readline()
        if line != b"ready\n":
            _, err = await process.communicate()
            raise RuntimeError(f"{name} did not start: {err.decode()[-2000:]}")
        yield Caller(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
