"""A peer's virtual environment: created on first use from pinned versions, and kept for later runs."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements")
INSTALL_TIMEOUT = 900.0
"""Seconds for one peer; Ray is about 300 MB."""


class UnavailableError(Exception):
    """A peer cannot be measured here; the message explains why."""


def cache() -> Path:
    """Return the folder where the benchmarks keep what they install and build."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "corral-bench"


@dataclass(frozen=True)
class Environment:
    """A virtual environment of pinned packages (`requirements/<name>.txt`)."""

    name: str
    interpreter: str = ""
    """The Python to create it with; empty for the one that runs this."""
    needs: str = ""
    """The hint in the error if there is no such interpreter."""

    @property
    def folder(self) -> Path:
        """Return the environment's folder, which may not exist yet."""
        return cache() / "peers" / self.name

    @property
    def python(self) -> Path:
        """Return the environment's interpreter."""
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Return the folder of the installed packages."""
        (found,) = self.folder.glob("lib/python3*/site-packages")
        return found

    async def prepare(self) -> None:
        """Create the environment if it is missing or out of date; raise UnavailableError if that fails."""
        await asyncio.to_thread(self._prepare)

    def _prepare(self) -> None:
        interpreter = self.interpreter or getattr(sys, "_base_executable", sys.executable)
        if not Path(interpreter).exists():
            raise UnavailableError(f"{self.name} needs {interpreter}: {self.needs}")
        file = REQUIREMENTS / f"{self.name}.txt"
        made_of = hashlib.sha256(f"{interpreter}\n".encode() + file.read_bytes()).hexdigest()
        mark = self.folder / ".made-of"
        with _alone(self.folder):
            if mark.exists() and mark.read_text() == made_of:
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            count = sum(line[:1].isalpha() for line in file.read_text().splitlines())
            print(f"  installing {self.name}: {count} packages into {self.folder}", flush=True)
            began = time.monotonic()
            self._run(interpreter, "-m", "venv", str(self.folder))
            # The file lists every package, so pip resolves nothing, and no version can drift.
            pip = (str(self.python), "-m", "pip", "--disable-pip-version-check", "install")
            self._run(*pip, "--no-deps", "--progress-bar", "off", "-r", str(file))
            mark.write_text(made_of)
            print(f"  installed {self.name} in {time.monotonic() - began:.0f} s", flush=True)

    def _run(self, *command: str) -> None:
        """Run a step of the installation, with its last line shown as progress on a terminal."""
        lines: list[str] = []
        deadline = time.monotonic() + INSTALL_TIMEOUT
        shown = sys.stdout.isatty()
        with subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip())
                if shown:
                    print(f"\r\x1b[K    {lines[-1][:90]}", end="", flush=True)
                if time.monotonic() > deadline:
                    process.kill()
        if shown:
            print("\r\x1b[K", end="", flush=True)
        if process.returncode:
            said = "\n".join(lines[-5:])
            raise UnavailableError(f"{self.name} cannot be installed: {said}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other runs from creating the same environment at the same time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
