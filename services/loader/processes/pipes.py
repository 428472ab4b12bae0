"""The backends' output: the pipes it comes through, and reading them.

A plain pipe breaks when its reader dies. Backends that may outlive their loader write to named
pipes instead, which they hold open for reading too: they never get SIGPIPE, and the next loader
goes on reading. Without a reader, a pipe fills up to the system's limit and then blocks its writer.
Nothing is written to the disk.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import IO

LineSink = Callable[[str, bytes], None]
"""Takes the pipe's name (`stdout`, `stderr`) and what was read from it; never blocks."""

STREAMS = ("stdout", "stderr")

_READ_SIZE = 64 * 1024

_FLOOD = _READ_SIZE // 4
"""Bytes at once that no backend writes unless it floods its log."""

_FLOOD_REST = 4
"""How many times as long as the handling of such a chunk the pipe then rests at least."""

_FLOOD_RATE = 10 * 1024 * 1024
"""Bytes a second that are read of a flood at most: reading costs more than handling what was read."""


class NamedPipes:
    """A folder of named pipes, two for each instance. Raises OSError where files do."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, which only this user can enter."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = folder

    def create(self, uid: str) -> tuple[list[int], list[IO[bytes]]]:
        """Return descriptors for the backend's stdout and stderr, and our ends; the caller closes them."""
        with ExitStack() as undo:
            undo.callback(self.remove, uid)
            writers = []
            for path in self._paths(uid):
                os.mkfifo(path, 0o600)
                # Opened before our end is: a pipe without any writer reads as ended.
                writers.append(os.open(path, os.O_RDWR))
                undo.callback(os.close, writers[-1])
            readers = self.open(uid)
            undo.pop_all()
        return writers, readers

    def open(self, uid: str) -> list[IO[bytes]]:
        """Return the ends to read the backend's stdout and stderr from."""
        readers: list[IO[bytes]] = []
        try:
            for path in self._paths(uid):
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                readers.append(os.fdopen(descriptor, "rb", buffering=0))
        except OSError:
            for reader in readers:
                reader.close()
            raise
        return readers

    def exist(self, uid: str) -> bool:
        """Whether the instance's pipes are there."""
        return all(path.is_fifo() for path in self._paths(uid))

    def remove(self, uid: str) -> None:
        """Remove the pipes of an instance that has ended."""
        for path in self._paths(uid):
            with suppress(OSError):
                path.unlink()

    def keep_only(self, uids: set[str]) -> None:
        """Remove the pipes of all other instances."""
        for path in self._folder.iterdir():
            if path.stem not in uids:
                with suppress(OSError):
                    path.unlink()

    def _paths(self, uid: str) -> list[Path]:
        return [self._folder / f"{uid}.{stream}" for stream in STREAMS]


async def pump(
    name: str, pipe: IO[bytes] | None, sink: LineSink, *, ended: Callable[[], bool]
) -> None:
    """Pass a pipe's output to `sink`, and nothing at the end; throttled during a flood."""
    reader = asyncio.StreamReader(limit=_READ_SIZE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        partial(asyncio.StreamReaderProtocol, reader), pipe
    )
    try:
        while chunk := await reader.read(_READ_SIZE):
            began = time.monotonic()
            sink(name, chunk)
            if len(chunk) >= _FLOOD and not ended():
                # One model's flood must not delay the calls of others; its backend waits instead.
                rest = (time.monotonic() - began) * _FLOOD_REST
                await asyncio.sleep(max(rest, len(chunk) / _FLOOD_RATE))
    except ConnectionError:
        pass
    finally:
        sink(name, b"")
        transport.close()
