"""The Python backend without a model: `python echo.py --addr ADDRESS`. It answers as native/backend.cc does."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc

MAX_MESSAGE = 50 << 20


class Echo(backend_pb2_grpc.BackendServicer):
    """Answers at once, or at a given pace."""

    async def Health(self, request: Any, context: Any) -> pb.Reply:  # noqa: D102
        return pb.Reply(message=b"OK")

    async def LoadModel(self, request: Any, context: Any) -> pb.Result:  # noqa: D102
        return pb.Result(success=True)

    async def Free(self, request: Any, context: Any) -> pb.Result:  # noqa: D102
        return pb.Result(success=True)

    async def Status(self, request: Any, context: Any) -> pb.StatusResponse:  # noqa: D102
        return pb.StatusResponse(state=pb.StatusResponse.READY)

    async def Predict(self, request: Any, context: Any) -> pb.Reply:
        """Answer with the prompt, or with as many bytes as asked for."""
        if "size" in request.Metadata:
            return pb.Reply(message=b"x" * int(request.Metadata["size"]))
        return pb.Reply(message=request.Prompt.encode())

    async def PredictStream(self, request: Any, context: Any) -> AsyncIterator[pb.Reply]:
        """Answer with messages that begin with the time (ns, CLOCK_MONOTONIC) they were sent at."""
        rate = float(request.Metadata["rate"]) if "rate" in request.Metadata else 0.0
        size = int(request.Metadata["size"]) if "size" in request.Metadata else 16
        rest = b"x" * (size - 8)
        due = time.monotonic()
        number = 0
        while not request.Tokens or number < request.Tokens:
            yield pb.Reply(message=struct.pack("<q", time.monotonic_ns()) + rest)
            number += 1
            if rate:
                # Streams that start together must not send together.
                due += (random.random() if number == 1 else 1) / rate
                await asyncio.sleep(max(due - time.monotonic(), 0))


class _Token(grpc.aio.ServerInterceptor):
    """Rejects calls without the token."""

    def __init__(self, token: str) -> None:
        self._expected = ("authorization", f"Bearer {token}")

        async def refuse(request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")

        self._refuse: Any = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        if self._expected not in handler_call_details.invocation_metadata:
            return self._refuse
        return await continuation(handler_call_details)


async def serve(address: str) -> None:
    """Serve until SIGTERM."""
    token = os.environ.get("LOCALAI_GRPC_AUTH_TOKEN")
    server = grpc.aio.server(
        interceptors=[_Token(token)] if token else [],
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.so_reuseport", 0),
        ],
    )
    servicer: Any = Echo
    backend_pb2_grpc.add_BackendServicer_to_server(servicer(), server)
    port = server.add_insecure_port(address)
    await server.start()
    if not address.startswith("unix:"):
        address = f"{address.rpartition(':')[0]}:{port}"
    print(f"ready bench {address}", flush=True)
    ended = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, ended.set)
    await ended.wait()
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--addr", required=True)
    address = parser.parse_args().addr
    asyncio.run(serve(address))
    if address.startswith("unix:"):
        Path(address.removeprefix("unix:")).unlink(missing_ok=True)
