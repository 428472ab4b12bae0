"""A non-blocking socket on the event loop, without a transport: one side of a splice.

A transport's extra work (its own buffer objects, flow control callbacks, checks) costs a spliced
message about as much as its two system calls.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

READ = 64 * 1024
"""Bytes to read at once: each connection keeps in memory what it cannot write on at once."""


class RawSocket:
    """A connected socket that buffers writes and reports when its buffer is in use."""

    __slots__ = (
        "_buffer",
        "_drained",
        "_fd",
        "_loop",
        "_reader",
        "_reading",
        "_send",
        "recv",
        "sock",
    )

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """Wrap a connected socket; nothing is read before `read`."""
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.recv = sock.recv
        self._send = sock.send
        self._fd = sock.fileno()
        self._loop = loop
        self._buffer = bytearray()
        self._reader: Callable[[], None] | None = None
        self._reading = False
        self._drained: Callable[[], None] | None = None

    def read(self, readable: Callable[[], None]) -> None:
        """Call `readable` whenever the socket is readable."""
        self._reader = readable
        self.resume()

    def pause(self) -> None:
        """Stop calling `readable` until `resume`."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """Call `readable` again after `pause`."""
        if not self._reading and self._reader is not None:
            self._reading = True
            self._loop.add_reader(self._fd, self._reader)

    @property
    def waiting(self) -> int:
        """The number of bytes waiting to be written."""
        return len(self._buffer)

    @property
    def full(self) -> bool:
        """Whether any bytes wait to be written."""
        return bool(self._buffer)

    def send(self, data: bytes) -> bool:
        """Write now or once writable; return whether all is written. Raises OSError."""
        if self._buffer:
            self._buffer += data
            return False
        try:
            sent = self._send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == len(data):
            return True
        self._buffer += memoryview(data)[sent:]
        self._loop.add_writer(self._fd, self._flush)
        return False

    def when_drained(self, action: Callable[[], None]) -> None:
        """Call `action` once, when all is written or writing has failed."""
        self._drained = action

    def _flush(self) -> None:
        try:
            sent = self._send(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            sent = len(self._buffer)  # the next read finds the connection broken
        del self._buffer[:sent]
        if not self._buffer:
            self._loop.remove_writer(self._fd)
            drained, self._drained = self._drained, None
            if drained is not None:
                drained()

    def close(self) -> None:
        """Close the socket; unwritten bytes are lost. Idempotent."""
        if self._fd < 0:
            return
        self.pause()
        if self._buffer:
            self._loop.remove_writer(self._fd)
            self._buffer.clear()
        self._reader = self._drained = None
        self._fd = -1
        self.sock.close()
