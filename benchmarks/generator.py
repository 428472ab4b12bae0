"""One run of the load generator, and the processor time that each process spent on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import native
from .clocks import cpu_seconds

SLACK = 60.0
"""Seconds after its planned end at which a load generator is considered to hang."""

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Load:
    """What to call and how; native/load.cc documents `paced`, `drain` and the others."""

    method: str
    request: Path
    mode: str = "unary"
    concurrency: int = 1
    seconds: float = 1.0
    warmup: float = 0.2
    paced: float = 0.0
    drain: float = 20.0
    connections: int = 1


@dataclass(frozen=True)
class Sample:
    """One run; processor times are microseconds an operation: a call, or a message of a stream."""

    rate: float
    """Operations a second."""
    p50: float
    """Microseconds of a call, or of a paced message's delay; 0 for other streams."""
    p99: float
    cpu: float
    """Of the processes between client and backend; the backend's if there are none."""
    backend_cpu: float
    client_cpu: float
    size: float
    """Mean bytes of an answer."""
    operations: int
    errors: int
    error: str

    @property
    def server_cpu(self) -> float:
        """The processor time of everything except the client."""
        # Exactly equal only if nothing is between client and backend: then both are the backend's.
        return self.cpu + (self.backend_cpu if self.cpu != self.backend_cpu else 0)


class LoadError(RuntimeError):
    """The load generator could not do its work, or no call succeeded."""


def _command(load: Load, target: str, metadata: Metadata) -> list[str]:
    command = [str(native.LOAD), "--target", target]
    for name in ("method", "request", "mode", "concurrency", "seconds", "warmup", "paced", "drain"):
        command += [f"--{name}", str(getattr(load, name))]
    command += ["--connections", str(load.connections)]
    for key, value in metadata:
        command += ["--metadata", f"{key}={value}"]
    return command


async def generate(
    load: Load,
    target: str,
    metadata: Metadata = (),
    *,
    between: Sequence[int] = (),
    backend: Sequence[int] = (),
) -> Sample:
    """Run a load against a target; `between` and `backend` are the processes whose time is counted.

    Raises LoadError.
    """
    before = cpu_seconds(between), cpu_seconds(backend)
    process = await asyncio.create_subprocess_exec(
        *_command(load, target, metadata),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(load.warmup + load.seconds + load.drain + SLACK):
            out, err = await process.communicate()
    except TimeoutError:
        raise LoadError("the load generator hangs") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise LoadError(
            err.decode().strip() or f"the load generator ended with {process.returncode}"
        )
    after = cpu_seconds(between), cpu_seconds(backend)
    return _sample(json.loads(out), after[0] - before[0], after[1] - before[1], bool(between))


def _sample(said: Mapping[str, Any], between: float, backend: float, proxied: bool) -> Sample:
    total = said["total"]
    if not said["ops"]:
        raise LoadError(said["error"] or "not one operation ended in time")
    behind = round(backend / total * 1e6, 3)
    return Sample(
        rate=said["rps"],
        p50=said["p50_us"],
        p99=said["p99_us"],
        cpu=round(between / total * 1e6, 3) if proxied else behind,
        backend_cpu=behind,
        client_cpu=said["cpu_us"],
        size=round(said["bytes"] / total, 1),
        operations=said["ops"],
        errors=said["errors"],
        error=said["error"],
    )


@asynccontextmanager
async def open_streams(load: Load, target: str, metadata: Metadata = ()) -> AsyncIterator[None]:
    """Keep streams open during the block, which begins when each has had its first message.

    Raises LoadError.
    """
    process = await asyncio.create_subprocess_exec(
        *_command(load, target, metadata),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(SLACK):
            line = (await process.stderr.readline()).decode().strip()
        if line != "open":
            raise LoadError(line or "the load generator ended early")
        yield
    except TimeoutError:
        raise LoadError("the streams did not open") from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
