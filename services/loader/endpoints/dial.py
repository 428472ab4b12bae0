"""Connects to a backend's address without a transport."""

from __future__ import annotations

import asyncio
import socket
from typing import Any


def dial_now(address: str) -> socket.socket | None:
    """Connect to a Unix socket at once; None for other addresses, or if its queue is full."""
    if not address.startswith("unix:"):
        return None
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        sock.connect(address.removeprefix("unix:"))
    except BlockingIOError:
        sock.close()
        return None
    except OSError:
        sock.close()
        raise
    return sock


async def dial(address: str, timeout: float) -> socket.socket:
    """Connect to any address. Raises OSError, TimeoutError, ValueError for an invalid address."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout):
        if address.startswith("unix:"):
            return await _connected(socket.socket(socket.AF_UNIX), address.removeprefix("unix:"))
        host, _, port = address.rpartition(":")
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, target = found[0]
        return await _connected(socket.socket(family, kind, protocol), target)


async def _connected(sock: socket.socket, target: Any) -> socket.socket:
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, target)
    except BaseException:
        sock.close()
        raise
    return sock
