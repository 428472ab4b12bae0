"""One client of the soak test, a separate process: `python client.py SETTINGS`, JSON of the `clients.Way` and a `seed`.

It does everything that clients do, concurrently, until its stdin ends or it is killed. It prints a line of
JSON for each call that failed, and regularly the number of calls of each kind.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc
from corral.loader.v1 import loader_pb2, loader_pb2_grpc

PATIENCE = 30.0
"""The deadline in seconds of a call that should end before it."""
BIG = 4 * 1024 * 1024
SLOW_MESSAGE = 64 * 1024
COUNT_EVERY = 0.5
LEASE = Duration(seconds=1)
DETAILS = "grpc-status-details-bin"
LARGEST = 50 * 1024 * 1024


class Client:
    """Makes calls at one address."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """`settings` has the target, the metadata, the model and the seed."""
        self._chance = random.Random(settings["seed"])
        options = [
            ("grpc.max_receive_message_length", LARGEST),
            # Without it grpcio does not retry a request over 256 KiB that met an unload.
            ("grpc.per_rpc_retry_buffer_size", 2 * BIG),
        ]
        self.channel = grpc.aio.insecure_channel(settings["target"], options=options)
        self._stub: Any = backend_pb2_grpc.BackendStub(self.channel)
        self._loader: Any = loader_pb2_grpc.LoaderServiceStub(self.channel)
        self._metadata = tuple(tuple(pair) for pair in settings["metadata"])
        self._model = settings["model"]
        self.counts: Counter[str] = Counter()

    async def unary(self) -> None:
        """Make a unary call."""
        text = "x" * self._chance.randrange(1, 2000)
        answer = await self._stub.Predict(
            pb.PredictOptions(Prompt=text), metadata=self._metadata, timeout=PATIENCE
        )
        if len(answer.message) != len(text):
            raise ValueError(f"an answer of {len(answer.message)} bytes, not {len(text)}")

    async def big(self) -> None:
        """Send and receive a message of some MiB."""
        size = self._chance.randrange(BIG // 4, BIG)
        answer = await self._stub.Predict(
            pb.PredictOptions(Prompt="x" * size), metadata=self._metadata, timeout=PATIENCE
        )
        if len(answer.message) != size:
            raise ValueError(f"an answer of {len(answer.message)} bytes, not {size}")

    async def stream(self) -> None:
        """Read a stream to its end."""
        tokens = self._chance.randrange(1, 60)
        seen = 0
        async for _ in self._stream(PATIENCE, tokens=tokens, rate=50):
            seen += 1
        if seen != tokens:
            raise ValueError(f"{seen} messages, not {tokens}")

    async def slow(self) -> None:
        """Read a few messages of a stream that is sent faster, and cancel it."""
        call = self._stream(PATIENCE, size=SLOW_MESSAGE)
        try:
            for _ in range(self._chance.randrange(5, 40)):
                await call.read()
                await asyncio.sleep(0.05)
        finally:
            call.cancel()

    async def cancelled(self) -> None:
        """Cancel a call at a random moment."""
        options = pb.PredictOptions(Prompt="x" * self._chance.choice((10, BIG)))
        calls: tuple[Callable[[], Any], ...] = (
            lambda: self._stream(PATIENCE, rate=100),
            lambda: self._stub.Predict(options, metadata=self._metadata, timeout=PATIENCE),
        )
        call = self._chance.choice(calls)()
        await asyncio.sleep(self._chance.uniform(0, 0.03))
        call.cancel()
        try:
            await call.code()
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise

    async def late(self) -> None:
        """Let a stream end by its deadline."""
        seconds = self._chance.uniform(0.001, 0.3)
        async for _ in self._stream(seconds, rate=20):
            pass

    async def direct(self) -> None:
        """Resolve the model, call it directly for part of the lease, and let the lease expire."""
        request = loader_pb2.ResolveModelRequest(name=self._model, lease_duration=LEASE)
        found = await self._loader.ResolveModel(request, timeout=PATIENCE)
        left = found.expire_time.ToNanoseconds() / 1e9 - time.time()
        held_until = time.monotonic() + left
        bearer = (("authorization", f"Bearer {found.token}"),)
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(found.address, options=own) as channel:
            stub: Any = backend_pb2_grpc.BackendStub(channel)
            try:
                for _ in range(self._chance.randrange(1, 20)):
                    options = pb.PredictOptions(Prompt="x")
                    await stub.Predict(options, metadata=bearer, timeout=PATIENCE)
                    await asyncio.sleep(0.02)
            except grpc.aio.AioRpcError:
                if time.monotonic() < held_until:
                    raise  # a call after the lease has expired may fail

    def _stream(self, timeout: float, *, tokens: int = 0, rate: int = 0, size: int = 16) -> Any:
        settings = {"size": str(size)} | ({"rate": str(rate)} if rate else {})
        options = pb.PredictOptions(Tokens=tokens, Metadata=settings)
        return self._stub.PredictStream(options, metadata=self._metadata, timeout=timeout)

    async def forever(self, kind: str, pause: float) -> None:
        """Make calls of one kind."""
        work: Callable[[], Awaitable[None]] = getattr(self, kind)
        while True:
            began = time.monotonic()
            try:
                await work()
            except grpc.aio.AioRpcError as error:
                code, text = error.code().name, error.details() or ""
                reason = _reason(error)
                its_own = code == "DEADLINE_EXCEEDED" or reason == "DEADLINE_TOO_SHORT"
                if kind != "late" or not its_own:
                    _say(kind=kind, at=began, code=code, reason=reason, text=text)
            except ValueError as error:
                _say(kind=kind, at=began, code="ANSWER", reason="", text=str(error))
            self.counts[kind] += 1
            await asyncio.sleep(self._chance.uniform(0, 2 * pause))


PAUSES = {"unary": 0.05, "big": 0.5, "stream": 0.1, "slow": 0.2, "cancelled": 0.1, "late": 0.1}
"""The kinds of calls that a client makes concurrently, and the mean seconds between two of each."""
DIRECT_PAUSES = {"direct": 0.5}


def _reason(error: grpc.aio.AioRpcError) -> str:
    """Return the reason in the error's details; empty if there is none."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS and isinstance(value, bytes):
            for each in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if each.Unpack(info):
                    return str(info.reason)
    return ""


def _say(**what: Any) -> None:
    print(json.dumps({**what, "end": time.monotonic()}), flush=True)


async def _count(client: Client) -> None:
    while True:
        await asyncio.sleep(COUNT_EVERY)
        _say(counts=dict(client.counts))


async def main(settings: dict[str, Any]) -> None:
    """Run until stdin ends."""
    client = Client(settings)
    pauses = DIRECT_PAUSES if settings["direct"] else PAUSES
    tasks = [asyncio.create_task(client.forever(kind, pause)) for kind, pause in pauses.items()]
    tasks.append(asyncio.create_task(_count(client)))
    reading = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    ended, _ = await asyncio.wait([reading, *tasks], return_when=asyncio.FIRST_COMPLETED)
    _say(counts=dict(client.counts))
    for task in ended - {reading}:
        task.result()  # raises unexpected errors
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.channel.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
