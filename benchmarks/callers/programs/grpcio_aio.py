"""Calls Predict with grpcio's asyncio, as `callers.Calling` describes, until its stdin ends."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from typing import Any

import grpc

from corral.backend import backend_pb2, backend_pb2_grpc


async def main(how: dict[str, Any]) -> None:
    """Run."""
    calls: list[tuple[float, float]] = []
    failures: list[dict[str, Any]] = []
    ended = asyncio.Event()
    metadata = tuple(tuple(pair) for pair in how["metadata"])
    request = backend_pb2.PredictOptions(Prompt="x" * how["size"])

    async def work(stub: Any) -> None:
        while not ended.is_set():
            began = time.monotonic()
            try:
                answer = await stub.Predict(request, metadata=metadata, timeout=how["deadline"])
                assert len(answer.message) == how["size"], "the answer is another one"
            except (grpc.aio.AioRpcError, AssertionError) as error:
                code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else "ANSWER"
                failures.append({"at": began, "code": code, "text": str(error)})
            calls.append((began, time.monotonic()))
            with suppress(TimeoutError):
                rest = 1 / how["rate"] - (time.monotonic() - began)
                await asyncio.wait_for(ended.wait(), max(0.0, rest))

    async with grpc.aio.insecure_channel(how["target"]) as channel:
        stub: Any = backend_pb2_grpc.BackendStub(channel)
        workers = [asyncio.create_task(work(stub)) for _ in range(how["workers"])]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        ended.set()
        await asyncio.gather(*workers)
    print(json.dumps({"calls": calls, "failures": failures}), flush=True)


asyncio.run(main(json.loads(sys.argv[1])))
