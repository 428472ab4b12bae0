"""Silent servers in other languages, built on first use; skipped without their toolchain."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.callers import node
from benchmarks.peers.environment import UnavailableError, cache

FAKES = Path(__file__).resolve().parents[1] / "fakes"
GO_PROGRAM = FAKES / "silent_backend_go"
JS_PROGRAM = FAKES / "silent_backend.js"
BUILD_SECONDS = 240.0
START_SECONDS = 20.0


@contextlib.asynccontextmanager
async def silent_go(silence: float) -> AsyncIterator[str]:
    """Run grpc-go's server and yield its address."""
    async with _running([str(await _go_binary()), f"{silence}s"], {}) as address:
        yield address


@contextlib.asynccontextmanager
async def silent_js(silence: float) -> AsyncIterator[str]:
    """Run grpc-js's server and yield its address."""
    try:
        modules = await node.modules()
    except UnavailableError as error:
        pytest.skip(str(error))
    command = ["node", str(JS_PROGRAM), str(int(silence * 1000))]
    async with _running(command, {"NODE_PATH": str(modules)}) as address:
        yield address


async def _go_binary() -> Path:
    """Return the program, built once for each version of its source."""
    if not shutil.which("go"):
        pytest.skip("needs go")
    digest = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(GO_PROGRAM.iterdir())))
    binary = cache() / "go" / f"silent-{digest.hexdigest()[:16]}"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        partial = binary.with_suffix(f".{os.getpid()}")
        build = await asyncio.create_subprocess_exec(
            *("go", "build", "-o", str(partial), "."),
            cwd=GO_PROGRAM,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(build.communicate(), BUILD_SECONDS)
        assert build.returncode == 0, errors.decode()[-2000:]
        partial.replace(binary)
    return binary


@contextlib.asynccontextmanager
async def _running(command: list[str], variables: dict[str, str]) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, **variables}
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        yield line.decode().strip()
    finally:
        process.kill()
        await process.wait()
