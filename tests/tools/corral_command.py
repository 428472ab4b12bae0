"""The command `corral` as a real process, and what it left."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tools.service import ROOT, environment


def command_environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a command whose home and whose screen's width are known."""
    return environment(**{"CORRAL_HOME": str(home), "COLUMNS": "120", **more})


@dataclass
class Done:
    """What a `corral` process left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


async def start(
    home: Path, *args: str, stdin: int = asyncio.subprocess.DEVNULL, **extra: str
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.cli",
        *args,
        cwd=ROOT,
        env=command_environment(home, **extra),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def corral(home: Path, *args: str, stdin: str | None = None, **extra: str) -> Done:
    """Run a command to its end."""
    pipe = asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE
    process = await start(home, *args, stdin=pipe, **extra)
    async with asyncio.timeout(30):
        out, err = await process.communicate(None if stdin is None else stdin.encode())
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Done(process.returncode, out.decode(), err.decode())
