"""A bare proxy of PredictStream that joins messages: the messages of a window are forwarded as one.

`python window_proxy.py --listen ADDRESS --backend ADDRESS --window SECONDS`; with 0 it joins the
messages that arrived during the last write.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc import aio

from corral.backend import backend_pb2 as pb

METHOD = "PredictStream"
SERVICE = "backend.Backend"


def joining(channel: aio.Channel, window: float) -> Any:
    """Return the handler."""
    call: Any = channel.unary_stream(f"/{SERVICE}/{METHOD}")

    async def pass_on(request: bytes, context: Any) -> AsyncIterator[bytes]:
        arrived: list[bytes] = []
        event = asyncio.Event()
        over = False

        async def read() -> None:
            nonlocal over
            try:
                sent = aio.Metadata(*context.invocation_metadata())
                async for message in call(request, metadata=sent):
                    arrived.append(message)
                    event.set()
            finally:
                over = True
                event.set()

        reader = asyncio.create_task(read())
        try:
            while not over or arrived:
                await event.wait()
                if window and not over:
                    await asyncio.sleep(window)
                event.clear()
                if arrived:
                    joined, arrived[:] = _joined(arrived), []
                    yield joined
                if over:
                    event.set()
            await reader
        finally:
            reader.cancel()

    return grpc.unary_stream_rpc_method_handler(pass_on)


def _joined(messages: list[bytes]) -> bytes:
    if len(messages) == 1:
        return messages[0]
    text = b"".join(pb.Reply.FromString(message).message for message in messages)
    return pb.Reply(message=text).SerializeToString()


async def serve(listen: str, backend: str, window: float) -> None:
    """Forward calls until killed."""
    server = aio.server()
    handlers = {METHOD: joining(aio.insecure_channel(backend), window)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(listen)
    await server.start()
    print(f"ready {listen}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--window", type=float, required=True)
    given = parser.parse_args()
    asyncio.run(serve(given.listen, given.backend, given.window))
