"""Inspect processes: which are running, their parents, and the CPU time they used."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from pathlib import Path

import psutil

SLEEPER = [sys.executable, "-S", "-c", "import signal; signal.pause()"]
"""A program that does nothing until it is killed."""


def alive(process: int | psutil.Process) -> bool:
    """Return whether a process is running; a zombie is not."""
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return found.is_running() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return the running processes whose working folder is below `folder`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd().startswith(str(folder)):
                found.append(process)
    return found


def command(process: psutil.Process) -> str:
    """Return a process's command line; empty if it has ended, even during this call."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def descendants(pid: int, running: str) -> list[psutil.Process]:
    """Return a process's running descendants whose command line contains `running`."""
    found = []
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid).children(recursive=True)
    return [process for process in found if running in command(process) and alive(process)]


def children(pid: int) -> list[int]:
    """Return the pids of a process's children, oldest first."""
    # Unlike psutil this reads one file, which is cheap enough for a test that polls.
    with suppress(OSError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def cpu_seconds(pid: int) -> float:
    """Return a process's CPU time."""
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system


def free_port() -> int:
    """Return a free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
