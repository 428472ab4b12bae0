"""A small HTTP client for the engine's private Unix socket: one request a connection."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

# More than any line of a header, and what is read ahead of a slow consumer.
READ_AHEAD = 1 << 16


class WireError(Exception):
    """The engine closed the connection, or answered something that is not HTTP."""


class Exchange:
    """One request and its answer."""

    def __init__(self, path: Path, key: str) -> None:
        """Prepare a connection to the socket at `path`."""
        self._path = path
        self._key = key
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._headers: dict[str, str] = {}

    async def send(self, route: str, body: Any = None) -> None:
        """Connect and send: POST with a body, GET without.

        Raises:
            WireError: nothing listens.
        """
        payload = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        head = (
            f"{method} {route} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Authorization: Bearer {self._key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(
                str(self._path), limit=READ_AHEAD
            )
            self._writer.write(head.encode() + payload)
            await self._writer.drain()
        except OSError as error:
            raise WireError(f"the engine does not answer: {error}") from error

    async def status(self) -> int:
        """Wait for the status line and the headers; generation sends them with its first token."""
        parts = (await self._line()).split(maxsplit=2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/") or not parts[1].isdigit():
            raise WireError("the engine's answer is not HTTP")
        while line := await self._line():
            name, _, value = line.partition(":")
            self._headers[name.strip().lower()] = value.strip()
        return int(parts[1])

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        reader = self._open()
        try:
            if self._headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int(await self._line() or "0", 16):
                    yield await reader.readexactly(size)
                    await reader.readexactly(2)
            elif "content-length" in self._headers:
                yield await reader.readexactly(int(self._headers["content-length"]))
            else:
                while piece := await reader.read(READ_AHEAD):
                    yield piece
        except (asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise WireError("the engine broke off its answer") from error

    async def json(self) -> Any:
        """The whole body, decoded."""
        body = b"".join([piece async for piece in self.pieces()])
        try:
            return json.loads(body)
        except ValueError as error:
            raise WireError(f"the engine's answer is not JSON: {error}") from error

    async def events(self) -> AsyncIterator[Any]:
        """The server-sent events of the body, decoded, without the closing mark."""
        pending = b""
        async for piece in self.pieces():
            *events, pending = (pending + piece).split(b"\n\n")
            for event in events:
                kind, _, data = event.partition(b": ")
                if kind in (b"data", b"error") and data != b"[DONE]":
                    yield json.loads(data)

    async def anything(self) -> None:
        """Wait until anything more comes, or the end."""
        if self._reader is not None:
            with contextlib.suppress(OSError):
                await self._reader.read(1)

    def close(self) -> None:
        """Hang up; an engine that still generates notices at its next token."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> asyncio.StreamReader:
        if self._reader is None:
            raise WireError("nothing was sent")
        return self._reader

    async def _line(self) -> str:
        try:
            line = await self._open().readuntil(b"\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
            raise WireError("the engine broke off its answer") from error
        return line[:-2].decode("latin-1")
