"""A service of raw bytes with one method for each kind of RPC, scripted by the test."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc import aio

from services.common.rpc.call_records import CallRecord

KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
DEADLINE = 5.0


class Raw(grpc.GenericRpcHandler):
    """Serves `/test.Raw/<kind>` with bytes; the test decides what each call does."""

    def __init__(self) -> None:
        self.act: Callable[[Any], Any] = self.echo
        self.closed = asyncio.Event()
        self.sent_trailing: tuple[tuple[str, str], ...] = ()

    def service(self, details: Any) -> Any:
        kind = details.method.rpartition("/")[2]
        if details.method != f"/test.Raw/{kind}" or kind not in KINDS:
            return None
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(self.many if kind.endswith("stream") else self.one)

    async def echo(self, context: Any) -> None:
        return None

    async def many(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        try:
            if isinstance(requests, bytes):
                yield requests
            else:
                async for request in requests:
                    yield request
            await self.act(context)
        finally:
            # A handler's cleanup takes a moment.
            await asyncio.sleep(0)
            self.closed.set()

    async def one(self, requests: Any, context: Any) -> bytes:
        try:
            data = requests if isinstance(requests, bytes) else b""
            if not data:
                async for request in requests:
                    data += request
            await self.act(context)
            return data
        finally:
            self.closed.set()


class Recorder:
    def __init__(self) -> None:
        self.records: list[CallRecord] = []
        self.changed = asyncio.Event()

    def call_ended(self, record: CallRecord) -> None:
        self.records.append(record)
        self.changed.set()

    async def next(self) -> CallRecord:
        async with asyncio.timeout(DEADLINE):
            while not self.records:
                self.changed.clear()
                await self.changed.wait()
        return self.records.pop(0)


class World:
    """A server with the raw service, and a channel to it."""

    def __init__(self, channel: aio.Channel, raw: Raw, recorder: Recorder) -> None:
        self.channel = channel
        self.raw = raw
        self.recorder = recorder

    def start(self, kind: str, *, messages: int = 2, **options: Any) -> Any:
        options.setdefault("timeout", DEADLINE)
        method = getattr(self.channel, kind)(f"/test.Raw/{kind}")
        if kind.startswith("unary"):
            return method(b"x", **options)

        async def requests() -> AsyncIterator[bytes]:
            for _ in range(messages):
                yield b"x"

        return method(requests(), **options)

    async def finish(self, kind: str, **options: Any) -> tuple[list[bytes], Any]:
        running = self.start(kind, **options)
        if kind.endswith("unary"):
            return [await running], running
        return [response async for response in running], running


def failing(error: BaseException) -> Callable[[Any], Any]:
    async def act(context: Any) -> None:
        raise error

    return act
