"""A foreign backend for tests: a program that takes `--addr host:port` and serves `backend.Backend`.

How it behaves is read from `behaviour.json` in its working folder, which under the loader is that of
its run.sh. It knows nothing of Corral: no announcement, no Unix sockets, no parent watch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc

BEHAVIOUR = "behaviour.json"
SLEEPER = [sys.executable, "-S", "-c", "import signal; signal.pause()"]


class Backend(backend_pb2_grpc.BackendServicer):
    def __init__(self, behaviour: dict[str, Any]) -> None:
        self.behaviour = behaviour
        self.options = pb.ModelOptions()

    def note(self, text: str) -> None:
        with Path("notes.txt").open("a") as file:
            file.write(text + "\n")

    async def check(self, context: Any) -> None:
        token = os.environ.get("LOCALAI_GRPC_AUTH_TOKEN")
        sent = dict(context.invocation_metadata()).get("authorization")
        if token and sent != f"Bearer {token}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")

    async def Health(self, request: Any, context: Any) -> pb.Reply:
        await self.check(context)
        return pb.Reply(message=b"OK")

    async def LoadModel(self, request: pb.ModelOptions, context: Any) -> pb.Result:
        await self.check(context)
        how = self.behaviour.get("load", "ok")
        self.note(f"load {request.Model}")
        await asyncio.sleep(self.behaviour.get("load_seconds", 0))
        if how == "refuse":
            return pb.Result(success=False, message="no such architecture")
        if how == "error":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the file is broken")
        if how == "crash":
            print("tensor 7 is out of bounds", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGABRT)
        if how == "hang":
            await asyncio.Event().wait()
        self.options = request
        return pb.Result(success=True, message="Loading succeeded")

    async def Predict(self, request: pb.PredictOptions, context: Any) -> pb.Reply:
        """Answer with what was received, or fail as the prompt says."""
        await self.check(context)
        metadata = dict(context.invocation_metadata())
        if request.Prompt.startswith("fail:"):
            await self.fail(request.Prompt.removeprefix("fail:"), context)
        if request.Prompt == "crash":
            print("about to crash", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if request.Prompt == "wait":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.note("cancelled")
                raise
        await context.send_initial_metadata((("fake-initial", "i"),))
        context.set_trailing_metadata((("fake-trailing", "t"), ("fake-bin", b"\0\1")))
        seen = {
            "prompt": request.Prompt,
            "identity": request.ModelIdentity,
            "metadata": {k: v for k, v in metadata.items() if isinstance(v, str)},
            "remaining": context.time_remaining(),
            "pid": os.getpid(),
        }
        return pb.Reply(message=json.dumps(seen).encode())

    async def fail(self, code: str, context: Any) -> None:
        status = status_pb2.Status(code=grpc.StatusCode[code].value[0], message=f"told to {code}")
        detail = AnyMessage()
        detail.Pack(error_details_pb2.ErrorInfo(reason="TOLD_TO", domain="fake"))
        status.details.append(detail)
        await context.abort(
            grpc.StatusCode[code],
            f"told to {code}",
            (("grpc-status-details-bin", status.SerializeToString()), ("fake-trailing", "t")),
        )

    async def PredictStream(
        self, request: pb.PredictOptions, context: Any
    ) -> AsyncIterator[pb.Reply]:
        await self.check(context)
        await context.send_initial_metadata((("fake-initial", "i"),))
        try:
            for number in range(request.Tokens or 1_000_000):
                yield pb.Reply(message=f"{number} ".encode())
                if request.Prompt.startswith("fail-after:") and number == 2:
                    await self.fail(request.Prompt.removeprefix("fail-after:"), context)
                await asyncio.sleep(self.behaviour.get("token_seconds", 0.01))
        except asyncio.CancelledError:
            self.note("stream cancelled")
            raise
        context.set_trailing_metadata((("fake-trailing", "t"),))

    async def AudioTranscriptionLive(
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        await self.check(context)
        async for request in requests:
            yield pb.TranscriptLiveResponse(delta=request.config.language)
        yield pb.TranscriptLiveResponse(eou=True)

    async def Free(self, request: Any, context: Any) -> pb.Result:
        self.note("free")
        return pb.Result(success=True)


class Newer(grpc.GenericRpcHandler):
    """RPCs that the contract does not have yet, of the fourth kind among them."""

    def service(self, details: Any) -> Any:
        if details.method == "/backend.Backend/CountUploads":

            async def count(requests: AsyncIterator[bytes], context: Any) -> bytes:
                return str(len([request async for request in requests])).encode()

            return grpc.stream_unary_rpc_method_handler(count)
        if details.method == "/backend.Backend/Reverse":

            async def reverse(request: bytes, context: Any) -> bytes:
                return request[::-1]

            return grpc.unary_unary_rpc_method_handler(reverse)
        return None


async def serve(address: str, behaviour: dict[str, Any]) -> None:
    size = 64 * 1024**2
    limits = [("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size)]
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *limits])
    backend_pb2_grpc.add_BackendServicer_to_server(Backend(behaviour), server)
    server.add_generic_rpc_handlers((Newer(),))
    server.add_insecure_port(address)
    await server.start()
    if seconds := behaviour.get("sigterm_seconds"):
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: loop.call_later(seconds, end))
    if behaviour.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    await server.wait_for_termination()


def end() -> None:
    with Path("notes.txt").open("a") as file:
        file.write("ended in peace\n")
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--addr", required=True)
    address = parser.parse_args().addr
    file = Path(BEHAVIOUR)
    behaviour = json.loads(file.read_text()) if file.exists() else {}
    for _ in range(behaviour.get("children", 0)):
        subprocess.Popen(SLEEPER)
    if behaviour.get("escapee"):
        subprocess.Popen(SLEEPER, start_new_session=True)
    for line in range(behaviour.get("stderr_lines", 0)):
        print(f"noise {line} " + "x" * 200, file=sys.stderr)
    start = behaviour.get("start", "ok")
    if start.startswith("exit:"):
        print("cannot open libfoo.so", file=sys.stderr, flush=True)
        raise SystemExit(int(start.removeprefix("exit:")))
    if start == "hang":
        signal.pause()
    asyncio.run(serve(address, behaviour))


if __name__ == "__main__":
    main()
