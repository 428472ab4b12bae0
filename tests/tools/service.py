"""A service as a separate process: a clean environment, its ready line, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT = 20.0
STOP_TIMEOUT = 20.0
# Variables that would change how a service, a backend or the command behaves.
SETTINGS = ("CORRAL_", "LOCALAI_", "LLAMACPP_", "NO_COLOR")


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without Corral's settings, plus these variables."""
    return {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)} | more


def installed(program: str) -> Path:
    """Return the path of a command installed in this environment."""
    return Path(sys.executable).with_name(program)


async def announced(process: asyncio.subprocess.Process, name: str) -> str:
    """Wait for the ready line on a process's stdout and return the address in it."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_TIMEOUT):
            line = (await process.stdout.readline()).decode()
    except TimeoutError:
        raise AssertionError(f"{name} was not ready within {READY_TIMEOUT:g} s") from None
    assert line.startswith(f"ready {name} "), f"{name} printed {line!r}"
    return line.split()[2]


class Service:
    """A running service process."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.address = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)

    async def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.process.wait(), timeout)
        except TimeoutError:
            self.kill()
            raise AssertionError(
                f"the service hangs in its stop:\n{self.log.read_text()}"
            ) from None

    async def end(self) -> None:
        """Kill the process if it still runs, and clean up. Idempotent."""
        if self.process.returncode is None:
            self.kill()
        await self.process.communicate()


async def start_service(
    name: str,
    home: Path,
    *arguments: str,
    program: Sequence[str | Path] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    pass_fds: tuple[int, ...] = (),
) -> Service:
    """Start `services.<name>`, or another program that is this service, on a free port.

    Returns once the ready line is printed. Its stderr goes to `<name>.log` in its home.
    """
    home.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a test may block
    log = home / f"{name}.log"
    command = [*(program or (sys.executable, "-m", f"services.{name}")), *arguments]
    if not any(argument.partition("=")[0] == "--listen" for argument in arguments):
        command += ["--listen", "127.0.0.1:0"]
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=cwd,
            env={**environment(CORRAL_HOME=str(home)), **(env or {})},
            pass_fds=pass_fds,
        )
    service = Service(process, log)
    try:
        service.address = await announced(process, name)
    except BaseException as error:
        await service.end()
        if isinstance(error, AssertionError):
            error.add_note(log.read_text())
        raise
    return service


@asynccontextmanager
async def running_service(
    name: str, home: Path, *arguments: str, **how: Any
) -> AsyncIterator[Service]:
    """Start a service, and stop it at the end of the block unless it has ended."""
    service = await start_service(name, home, *arguments, **how)
    try:
        yield service
    finally:
        await service.end()
