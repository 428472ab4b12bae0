"""The floor: what any grpc.aio proxy costs that only forwards bytes.

`python benchmarks/floor_proxy.py --listen ADDRESS --backend ADDRESS`. It forwards the contract's
methods by kind, with metadata and deadline: no routing, leases, logs or counts, and of a status only code and text.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import grpc
from grpc import aio

from corral.backend import backend_pb2
from services.common.rpc.channels import DEFAULT_MAX_MESSAGE_SIZE, channel_options
from services.common.rpc.mounts import server_options

SERVICE = backend_pb2.DESCRIPTOR.services_by_name["Backend"]


def handler(channel: aio.Channel, rpc: Any) -> Any:
    """Return the handler that forwards one method's calls."""
    kinds = ("unary", "stream")
    kind = f"{kinds[rpc.client_streaming]}_{kinds[rpc.server_streaming]}"
    method = getattr(channel, kind)(f"/{SERVICE.full_name}/{rpc.name}")

    def start(request: Any, context: Any) -> Any:
        sent = aio.Metadata(*context.invocation_metadata())
        return method(request, timeout=context.time_remaining(), metadata=sent)

    async def one(request: Any, context: Any) -> bytes:
        try:
            return await start(request, context)  # type: ignore[no-any-return]
        except aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))
            raise

    async def many(request: Any, context: Any) -> Any:
        try:
            async for response in start(request, context):
                yield response
        except aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))

    return getattr(grpc, f"{kind}_rpc_method_handler")(many if rpc.server_streaming else one)


async def serve(listen: str, backend: str, *, share_port: bool) -> None:
    """Forward calls until killed."""
    channel = aio.insecure_channel(backend, options=channel_options())
    options = {**dict(server_options(DEFAULT_MAX_MESSAGE_SIZE)), "grpc.so_reuseport": share_port}
    server = aio.server(options=[(name, int(value)) for name, value in options.items()])
    handlers = {rpc.name: handler(channel, rpc) for rpc in SERVICE.methods}
    generic = grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))
    server.add_insecure_port(listen)
    await server.start()
    print(f"ready {listen}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--share-port", action="store_true", help="with others like it")
    given = parser.parse_args()
    asyncio.run(serve(given.listen, given.backend, share_port=given.share_port))
