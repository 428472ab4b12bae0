"""Misbehaviour of the process: its pipes, memory, connections and end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NoReturn

from .behaviour import Behaviour, BehaviourError

_SLEEPER = "import signal; signal.pause()"
_STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + _SLEEPER
_LINE = 200
_CHUNK = 64 * 1024
_MIB = 1024 * 1024
_DESCRIPTORS = {"stdout": 1, "stderr": 2}
# How often a flood that has a rate writes, in seconds.
_FLOOD_STEP = 0.02


def note(how: Behaviour, text: str) -> None:
    """Append a line to the file `notes`, if it is set."""
    if how.notes:
        with Path(how.notes).open("a") as file:
            file.write(text + "\n")


def keep_request(how: Behaviour, request: bytes) -> None:
    """Write the request to the file `load_request`, if it is set."""
    if how.load_request:
        Path(how.load_request).write_bytes(request)


def begin(how: Behaviour) -> None:
    """Do everything that comes before the program listens; may not return."""
    if how.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for program, count, own_session in (
        (_SLEEPER, how.children, False),
        (_SLEEPER, how.escapee, True),
        (_STUBBORN, how.stubborn_children, False),
    ):
        for _ in range(count):
            command = [sys.executable, "-S", "-c", program]
            subprocess.Popen(command, start_new_session=own_session)
    for stream, lines in ((sys.stdout, how.stdout_lines), (sys.stderr, how.stderr_lines)):
        for line in range(lines):
            stream.write(f"noise {line} " + "x" * _LINE + "\n")
        stream.flush()
    time.sleep(how.start_seconds)
    kind, _, value = how.start.partition(":")
    if kind in ("exit", "kill"):
        say(how.start_text)
        _end(value if kind == "kill" else f"exit:{value}")
    while kind == "hang":
        signal.pause()


def say(text: str) -> None:
    """Write a line to stderr at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def crash(how: Behaviour, *, words: str, default: str) -> NoReturn:
    """End this process at once, as set by `crash_with`."""
    say(how.crash_text or words)
    _end(how.crash_with or default)


def freeze() -> None:
    """Stop until SIGCONT arrives."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _end(how: str) -> NoReturn:
    kind, _, code = how.partition(":")
    if kind == "exit":
        os._exit(int(code or 1))
    number = signal_number(how)
    with suppress(OSError):  # SIGKILL has no handler to reset
        signal.signal(number, signal.SIG_DFL)
    while True:
        os.kill(os.getpid(), number)
        time.sleep(1)


def signal_number(text: str) -> int:
    """Return a signal's number from `SIGSEGV`, `segv` or `11`. Raises BehaviourError."""
    if text.isdigit():
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return signal.Signals[name].value
    except KeyError:
        raise BehaviourError(f"there is no signal {text!r}") from None


def memory(mib: int) -> bytearray:
    """Return this much memory, with every page touched."""
    return bytearray(b"\1") * (mib * _MIB)


def burn(seconds: float) -> None:
    """Use a CPU for this long; other threads still run."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def close_connections() -> None:
    """Break every connection that this process has accepted, as a lost network does."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError, ValueError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            # A copy of the descriptor: shutting it down breaks the connection for the original too.
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    connection.getpeername()
                    connection.shutdown(socket.SHUT_RDWR)


class Flood:
    """Writes to a pipe endlessly, from a thread, while `flood` is set."""

    def __init__(self, now: Callable[[], Behaviour]) -> None:
        """`now` returns the current behaviour."""
        self._now = now
        self._thread: threading.Thread | None = None

    def ensure(self) -> None:
        """Start the flood if it is set and not running."""
        if self._now().flood and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="flood", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (how := self._now()).flood:
            size = min(_CHUNK, int(how.flood_bytes * _FLOOD_STEP) or 1)
            chunk = _chunk(how.flood_kind)[: size if how.flood_bytes else _CHUNK]
            try:
                os.write(_DESCRIPTORS[how.flood], chunk)
            except OSError:
                return
            if how.flood_bytes:
                time.sleep(len(chunk) / how.flood_bytes)


def _chunk(kind: str) -> bytes:
    if kind == "endless":
        return b"x" * _CHUNK
    if kind == "binary":
        return bytes(range(256)) * (_CHUNK // 256)
    end = b"\r" if kind == "progress" else b"\n"
    line = b"flood " + b"x" * (_LINE - 7) + end
    return line * (_CHUNK // len(line))


class LogWriter:
    """Writes a line per call, with each level in turn."""

    _LEVELS = ("debug", "info", "warning", "error")
    _GLOG: ClassVar = {"debug": "I", "info": "I", "warning": "W", "error": "E"}

    def __init__(self) -> None:
        """The first line has the lowest level."""
        self._count = 0

    def write(self, form: str, name: str) -> None:
        """Write a line for a call of this RPC."""
        level = self._LEVELS[self._count % len(self._LEVELS)]
        self._count += 1
        text = f"call {self._count}: {name}"
        say(
            {
                "text": f"[{level.upper()}] {text}",
                "json": f'{{"level": "{level}", "msg": "{text}"}}',
                "glog": f"{self._GLOG[level]}0102 03:04:05.678901 1 fake.cc:7] {text}",
                "python": f"2026-01-02 03:04:05,678 {level.upper()} fake {text}",
            }[form]
        )
