"""Calls scripted step by step, on plain bytes, for every RPC, known or not.

The steps are JSON in the call's metadata (`fake-steps`), so that a test of a proxy controls exactly what
the backend does, and when. README.md lists them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from . import disorder
from .behaviour import Script
from .call import allowed
from .errors import status_code

STEPS = "fake-steps"
NAME = "fake-call"
"""The metadata that names a call, so that other calls can read its progress."""

_SERVICE = "/backend.Backend/"
_KEPT = 1000
_LENGTH = 4


class Progress:
    """The progress of a call."""

    def __init__(self) -> None:
        """The call has not started."""
        self.received = 0
        self.sent = 0
        self.half_closed = False
        self.end = ""
        """`done`, `cancelled`, or its status; empty while it runs."""
        self.seen: dict[str, Any] = {}

    def shown(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(vars(self)).encode()


class Steps(grpc.GenericRpcHandler):
    """Handles the calls with steps in their metadata, and no others."""

    def __init__(self, script: Script, token: str) -> None:
        """`token`, if not empty, is required of calls unless `check_token` is off."""
        self._script = script
        self._token = token
        self._calls: OrderedDict[str, Progress] = OrderedDict()
        self._released: dict[str, asyncio.Event] = {}

    def service(self, details: Any) -> Any:
        """Return the handler: on the wire, every RPC is a stream in both directions."""
        if details.method.startswith(_SERVICE) and any(
            key == STEPS for key, _ in details.invocation_metadata or ()
        ):
            return grpc.stream_stream_rpc_method_handler(self._run)
        return None

    async def _run(self, _: Any, context: Any) -> None:
        metadata = context.invocation_metadata()
        if self._script.now().check_token and not allowed(metadata, self._token):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong bearer token")
        given = dict(metadata)
        progress = self._calls[given.get(NAME, "")] = Progress()
        progress.seen = {
            "metadata": [_text(key, value) for key, value in metadata],
            "remaining": context.time_remaining(),
            "pid": os.getpid(),
        }
        while len(self._calls) > _KEPT:
            self._calls.popitem(last=False)
        try:
            run = _Run(context, progress, self)
            for name, *arguments in json.loads(given[STEPS]):
                await run.steps[name](*arguments)
            progress.end = "done"
        except asyncio.CancelledError:
            progress.end = "cancelled"
            raise

    def progress(self, name: str) -> Progress:
        """Return the progress of a call; an empty one if it has not arrived."""
        return self._calls.get(name) or Progress()

    def released(self, name: str) -> asyncio.Event:
        """Return the event that `wait` awaits."""
        return self._released.setdefault(name, asyncio.Event())


class _Run:
    """One call; every step is a method."""

    def __init__(self, context: Any, progress: Progress, calls: Steps) -> None:
        self._context = context
        self._progress = progress
        self._calls = calls
        self._last = b""
        self.steps: dict[str, Callable[..., Awaitable[None]]] = {
            "initial": self.initial,
            "read": self.read,
            "echo": self.echo,
            "split": self.split,
            "write": self.write,
            "see": self.see,
            "progress": self.progress,
            "wait": self.wait,
            "release": self.release,
            "hang": self.hang,
            "crash": self.crash,
            "end": self.end,
        }

    async def initial(self, pairs: list[list[str]]) -> None:
        await self._context.send_initial_metadata(_pairs(pairs))

    async def read(self, count: int = 0) -> None:
        """Read `count` messages; 0 is all until the client closes its side."""
        await self._each(count, None)

    async def echo(self, count: int = 0) -> None:
        """Read like `read`, and send each back at once."""
        await self._each(count, self._send)

    async def split(self) -> None:
        """Send the messages contained in the last one, each with its length in front."""
        at = 0
        while at < len(self._last):
            size = int.from_bytes(self._last[at : at + _LENGTH], "big")
            at += _LENGTH
            await self._send(self._last[at : at + size])
            at += size

    async def write(self, size: int, count: int) -> None:
        """Send `count` messages of `size` bytes; each begins with its number."""
        for number in range(count):
            await self._send(number.to_bytes(_LENGTH, "big").ljust(size, b".")[:size])

    async def see(self) -> None:
        """Send this call's metadata, deadline and process id."""
        await self._send(json.dumps(self._progress.seen).encode())

    async def progress(self, name: str) -> None:
        """Send the progress of another call."""
        await self._send(self._calls.progress(name).shown())

    async def wait(self, name: str) -> None:
        """Wait until another call releases this one."""
        await self._calls.released(name).wait()

    async def release(self, name: str) -> None:
        """Let the calls continue that wait for `name`."""
        self._calls.released(name).set()

    async def hang(self) -> None:
        """Do nothing until the client gives up."""
        await asyncio.Event().wait()

    async def crash(self) -> None:
        """Crash at once."""
        disorder.crash(self._calls._script.now(), words="about to crash", default="SIGKILL")

    async def end(self, code: str, text: str = "", trailing: list[list[str]] | None = None) -> None:
        """End with this status and trailing metadata."""
        self._progress.end = code
        pairs = _pairs(trailing or [])
        if code == "OK":
            self._context.set_trailing_metadata(pairs)
            self._context.set_details(text)
            return
        await self._context.abort(status_code(code), text, pairs)

    async def _each(self, count: int, then: Callable[[bytes], Awaitable[None]] | None) -> None:
        limit = self._progress.received + count if count else None
        while limit is None or self._progress.received < limit:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                self._progress.half_closed = True
                return
            self._last = message
            self._progress.received += 1
            if then is not None:
                await then(message)

    async def _send(self, message: bytes) -> None:
        try:
            await self._context.write(message)
        except Exception:
            # grpc.aio raises this when the client leaves while the write waits for flow control.
            self._progress.end = "cancelled"
            raise
        self._progress.sent += 1


def _pairs(given: list[list[str]]) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (key, base64.b64decode(value) if key.endswith("-bin") else value) for key, value in given
    )


def _text(key: str, value: Any) -> list[str]:
    return [key, base64.b64encode(value).decode() if isinstance(value, bytes) else value]
