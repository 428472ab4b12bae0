"""A small real loader: what the monitor needs of one, over a real socket, with real processes.

Each model's Status is scripted: `ok`, `unimplemented`, `hang`, `error`, `wrong-bytes`,
`wrong-state`, `not-loaded`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc import aio

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2, loader_pb2_grpc
from services.common.errors import ModelBusyError, ModelNotFoundError, ModelNotLoadedError
from services.common.rpc.interceptors import ErrorInterceptor


@dataclass
class ModelFake:
    """One model of the fake, with its script."""

    state: loader_pb2.Model.State.ValueType = loader_pb2.Model.STATE_READY
    pid: int = 0
    start_time: float | None = None
    active_calls: int = 0
    status: str = "unimplemented"
    answer: backend_pb2.StatusResponse = field(
        default_factory=lambda: backend_pb2.StatusResponse(
            state=backend_pb2.StatusResponse.READY,
            memory=backend_pb2.MemoryUsageData(total=1000, breakdown={"weights": 900}),
        )
    )
    state_message: str = ""
    asked: int = 0

    def message(self, name: str) -> loader_pb2.Model:
        model = loader_pb2.Model(
            name=f"models/{name}", state=self.state, state_message=self.state_message
        )
        if self.state != loader_pb2.Model.STATE_UNLOADED:
            instance = model.instances.add(pid=self.pid, active_calls=self.active_calls)
            if self.start_time is not None:
                instance.start_time.FromNanoseconds(round(self.start_time * 1e9))
        return model


class LoaderFake(loader_pb2_grpc.LoaderServiceServicer):
    """The control plane, and the Status of the data plane."""

    def __init__(self) -> None:
        self.models: dict[str, ModelFake] = {}
        self.loads = 0
        self.address = ""

    def _find(self, name: str) -> tuple[str, ModelFake]:
        name = name.removeprefix("models/")
        if name not in self.models:
            raise ModelNotFoundError.of(name)
        return name, self.models[name]

    async def LoadModel(self, request: Any, context: Any) -> Any:
        self.loads += 1
        raise AssertionError("the monitor must not load")

    async def GetModel(self, request: Any, context: Any) -> Any:
        name, model = self._find(request.name)
        return loader_pb2.GetModelResponse(model=model.message(name))

    async def ListModels(self, request: Any, context: Any) -> Any:
        states = request.filter.states
        found = [
            model.message(name)
            for name, model in sorted(self.models.items())
            if not states or model.state in states
        ]
        return loader_pb2.ListModelsResponse(models=found, total_size=len(found))

    async def UnloadModel(self, request: Any, context: Any) -> Any:
        name, model = self._find(request.name)
        if model.active_calls and not request.force:
            raise ModelBusyError(f"model {name!r} still serves {model.active_calls} calls")
        if model.pid:
            os.killpg(model.pid, signal.SIGKILL)
            await asyncio.to_thread(os.waitpid, model.pid, 0)
        model.state, model.pid, model.active_calls = loader_pb2.Model.STATE_UNLOADED, 0, 0
        return loader_pb2.UnloadModelResponse(model=model.message(name))

    async def status(self, request: bytes, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata())
        name, model = self._find(str(metadata["corral-model"]))
        model.asked += 1
        match model.status:
            case "ok":
                return model.answer.SerializeToString()
            case "hang":
                await asyncio.Event().wait()
            case "error":
                await context.abort(grpc.StatusCode.INTERNAL, "out of cheese")
            case "wrong-bytes":
                return b"\xff\xff\xff"
            case "wrong-state":
                return b"\x08\x4d"
            case "not-loaded":
                raise ModelNotLoadedError.of(name)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")
        raise AssertionError

    @asynccontextmanager
    async def serving(self, address: str = "127.0.0.1:0") -> AsyncIterator[LoaderFake]:
        server = aio.server(interceptors=(ErrorInterceptor(),))
        loader_pb2_grpc.add_LoaderServiceServicer_to_server(self, server)
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Status": grpc.unary_unary_rpc_method_handler(self.status)
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("backend.Backend", handlers),)
        )
        port = server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code in a session of its own, as a loader starts a backend; kill it at the end.

    The code writes one line when it has reached the point the test needs.
    """
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), "the child ended before it was ready"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
