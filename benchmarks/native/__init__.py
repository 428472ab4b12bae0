"""The load generator and the backend in C++, built with the distribution's gRPC into build/bench."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

FOLDER = Path(__file__).parent
OUT = FOLDER.parents[1] / "build" / "bench"
LOAD = OUT / "load"
BACKEND = OUT / "backend"
PACKAGES = (
    "g++",
    "make",
    "pkg-config",
    "libgrpc++-dev",
    "libprotobuf-dev",
    "protobuf-compiler",
)
TIMEOUT = 600.0
"""Seconds for installing, and for building."""


class CannotBuildError(RuntimeError):
    """A dependency is missing and cannot be installed, or the programs do not compile."""


async def build() -> None:
    """Build what is out of date; on Debian, install its dependencies. Raises CannotBuildError."""
    if not await _can_build():
        await _install()
    code, output = await _ran("make", "-s", "-C", str(FOLDER))
    if code:
        raise CannotBuildError(f"the native programs cannot be built: {output[-2000:]}")


async def _can_build() -> bool:
    if not all(map(shutil.which, ("g++", "make", "pkg-config", "protoc"))):
        return False
    code, _ = await _ran("pkg-config", "--exists", "grpc++", "protobuf")
    return code == 0


async def _install() -> None:
    code, output = 1, "there is no apt-get"
    if shutil.which("apt-get"):
        print(f"installing {' '.join(PACKAGES)} with apt-get", flush=True)
        as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        install = [*as_root, "apt-get", "install", "-y", "-qq", *PACKAGES]
        code, output = await _ran(*as_root, "apt-get", "update", "-qq")
        if not code:
            code, output = await _ran(*install)
    if code:
        raise CannotBuildError(
            "the native programs need a C++ compiler with gRPC and protobuf; on Debian:"
            f" apt-get install {' '.join(PACKAGES)} ({output[-500:].strip()})"
        )


async def _ran(*command: str) -> tuple[int, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        return 1, str(error)
    async with asyncio.timeout(TIMEOUT):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode(errors="replace")
