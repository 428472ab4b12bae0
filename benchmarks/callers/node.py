"""grpc-js, installed with npm on first use."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

from benchmarks.peers.environment import UnavailableError, cache

PACKAGES = {"@grpc/grpc-js": "1.14.7", "@grpc/proto-loader": "0.8.1"}
INSTALL_TIMEOUT = 300.0


async def modules() -> Path:
    """Return the folder of the packages; raise UnavailableError if they are not available."""
    if not shutil.which("node") or not shutil.which("npm"):
        raise UnavailableError("grpc-js needs node and npm")
    folder = cache() / "node"
    wanted = json.dumps({"private": True, "dependencies": PACKAGES}, indent=2)
    file, found = folder / "package.json", folder / "node_modules"
    if await asyncio.to_thread(_is_there, file, wanted, found):
        return found
    print(f"  installing grpc-js into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file.write_text(wanted)
    process = await asyncio.create_subprocess_exec(
        *("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"),
        cwd=folder,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await asyncio.wait_for(process.communicate(), INSTALL_TIMEOUT)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise UnavailableError("npm hangs") from None
    if process.returncode:
        shutil.rmtree(folder)
        raise UnavailableError(f"npm cannot install grpc-js: {errors.decode()[-500:]}")
    return found


def _is_there(file: Path, wanted: str, found: Path) -> bool:
    return file.exists() and file.read_text() == wanted and found.is_dir()
