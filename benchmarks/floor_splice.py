"""The floor for model endpoints: an asyncio splice that does not inspect the bytes.

python -m benchmarks.floor_splice --listen unix:/tmp/a.sock --backend unix:/tmp/b.sock
"""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import Any

_HIGH_WATER = 256 * 1024


class Half(asyncio.Protocol):
    """One side of a splice: the other side writes what this one reads."""

    def __init__(self) -> None:
        """The other side is connected later."""
        self.other: Half | None = None
        self.transport: Any = None
        self.kept: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self.transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        """Forward the data to the other side."""
        if self.other is None:
            self.kept.append(data)
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        """Stop reading from the other side, as this side's buffer is full."""
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read from the other side again."""
        if self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        """Close the other side too."""
        if self.other is not None:
            self.other.transport.close()


async def serve(listen: str, backend: str) -> None:
    """Splice each connection to `listen` with one to `backend`, forever."""
    loop = asyncio.get_running_loop()
    connecting: set[asyncio.Task[None]] = set()

    async def connect(client: Half) -> None:
        _, server = await _open(loop, backend)
        client.other, server.other = server, client
        for data in client.kept:
            server.transport.write(data)
        client.kept.clear()

    def accepted() -> Half:
        client = Half()
        task = loop.create_task(connect(client))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
        return client

    if listen.startswith("unix:"):
        server = await loop.create_unix_server(accepted, listen.removeprefix("unix:"))
    else:
        host, _, port = listen.rpartition(":")
        server = await loop.create_server(accepted, host, int(port))
    print(f"ready floor_splice {listen}", flush=True)
    async with server:
        await server.serve_forever()


async def _open(loop: asyncio.AbstractEventLoop, address: str) -> tuple[Any, Half]:
    if address.startswith("unix:"):
        return await loop.create_unix_connection(Half, address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return await loop.create_connection(Half, host, int(port))


def main() -> None:
    """Run until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--uvloop", action="store_true")
    arguments = parser.parse_args()
    if arguments.uvloop:
        import uvloop  # type: ignore[import-not-found,unused-ignore]

        uvloop.install()
    path = arguments.listen.removeprefix("unix:")
    if path != arguments.listen and os.path.exists(path):
        os.unlink(path)
    asyncio.run(serve(arguments.listen, arguments.backend))


if __name__ == "__main__":
    main()
