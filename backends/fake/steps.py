"""Calls that are told step by step what to do: on bare bytes, for every RPC, known or not.

The steps come as JSON in the call's metadata (`fake-steps`), so that a test of a proxy can say exactly
what the backend does, and when. README.md lists them.
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
"""The metadata that names a call, so that others can ask for its progress."""

_SERVICE = "/backend.Backend/"
_KEPT = 1000
_LENGTH = 4


class Progress:
    """How far a call has come."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.received = 0
        self.sent = 0
        self.half_closed = False
        self.end = ""
        """`done`, `cancelled`, or the status that it was told; empty while it runs."""
        self.seen: dict[str, Any] = {}

    def shown(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(vars(self)).encode()


class Steps(grpc.GenericRpcHandler):
    """Answers the calls that bring their steps with them, and leaves the others alone."""

    def __init__(self, script: Script, token: str) -> None:
        """Check calls for the `token`, if there is one and the behaviour says so."""
        self._script = script
        self._token = token
        self._calls: OrderedDict[str, Progress] = OrderedDict()
        self._released: dict[str, asyncio.Event] = {}

    def service(self, details: Any) -> Any:
        """Return the handler: every kind of RPC is, on the wire, a stream both ways."""
        if details.method.startswith(_SERVICE) and any(
            key == STEPS for key, _ in details.invocation_metadata or ()
        ):
            return grpc.stream_stream_rpc_method_handler(self._run)
        return None

    async def _run(self, _: Any, context: Any) -> None:
        metadata = context.invocation_metadata()
        if self._script.now().check_token and not allowed(metadata, self._token):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong bearer token")
        told = dict(metadata)
        progress = self._calls[told.get(NAME, "")] = Progress()
        progress.seen = {
            "metadata": [_text(key, value) for key, value in metadata],
            "remaining": context.time_remaining(),
            "pid": os.getpid(),
        }
        while len(self._calls) > _KEPT:
            self._calls.popitem(last=False)
        try:
            run = _Run(context, progress, self)
            for name, *arguments in json.loads(told[STEPS]):
                await run.steps[name](*arguments)
            progress.end = "done"
        except asyncio.CancelledError:
            progress.end = "cancelled"
            raise

    def progress(self, name: str) -> Progress:
        """Return how far a call has come; one that did not arrive has not begun."""
        return self._calls.get(name) or Progress()

    def released(self, name: str) -> asyncio.Event:
        """Return the event for which `wait` waits."""
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
        """Read so many messages; 0 is all until the client closes its side."""
        await self._each(count, None)

    async def echo(self, count: int = 0) -> None:
        """Read like `read`, and send each back at once."""
        await self._each(count, self._send)

    async def split(self) -> None:
        """Send what the last message holds: messages with their length before them."""
        at = 0
        while at < len(self._last):
            size = int.from_bytes(self._last[at : at + _LENGTH], "big")
            at += _LENGTH
            await self._send(self._last[at : at + size])
            at += size

    async def write(self, size: int, count: int) -> None:
        """Send so many messages of so many bytes; the first ones hold their number."""
        for number in range(count):
            await self._send(number.to_bytes(_LENGTH, "big").ljust(size, b".")[:size])

    async def see(self) -> None:
        """Send what this call brought with it."""
        await self._send(json.dumps(self._progress.seen).encode())

    async def progress(self, name: str) -> None:
        """Send how far another call has come."""
        await self._send(self._calls.progress(name).shown())

    async def wait(self, name: str) -> None:
        """Wait until another call releases this one."""
        await self._calls.released(name).wait()

    async def release(self, name: str) -> None:
        """Let the calls go on that wait for this."""
        self._calls.released(name).set()

    async def hang(self) -> None:
        """Do nothing until the client gives up."""
        await asyncio.Event().wait()

    async def crash(self) -> None:
        """Die at once."""
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
            # What grpc.aio raises when the client goes while it waits for room.
            self._progress.end = "cancelled"
            raise
        self._progress.sent += 1


def _pairs(given: list[list[str]]) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (key, base64.b64decode(value) if key.endswith("-bin") else value) for key, value in given
    )


def _text(key: str, value: Any) -> list[str]:
    return [key, base64.b64encode(value).decode() if isinstance(value, bytes) else value]
