"""The RPCs: each call goes through the configured misbehaviour, and then gets its normal answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from corral.backend import backend_pb2 as pb

from . import answers, disorder, streams
from .behaviour import BehaviourError, Script
from .call import Call, Slots, allowed
from .errors import Answer, Refused, status_code
from .model import Model
from .stores import Jobs, Stores

SERVICE = pb.DESCRIPTOR.services_by_name["Backend"]
INITIAL = (("fake-initial", "i"),)
TRAILING = (("fake-trailing", "t"), ("fake-bin", b"\0\1"))
ECHO = "fake-echo-"
"""Metadata with this prefix are returned, in the initial and the trailing metadata."""

# RPCs of the process, not of its model.
_CONTROL = frozenset({"Health", "LoadModel", "Free", "Status"})
_NEEDS_NO_MODEL = _CONTROL | {
    "StartFineTune",
    "FineTuneProgress",
    "StopFineTune",
    "ListCheckpoints",
    "ExportModel",
    "StartQuantization",
    "QuantizationProgress",
    "StopQuantization",
}


class Backend:
    """All RPCs of the contract, and the state of the one model."""

    def __init__(self, script: Script, flood: disorder.Flood, token: str) -> None:
        """`token`, if not empty, is required of every call."""
        self._script = script
        self._model = Model(script)
        self._flood = flood
        self._jobs = Jobs()
        good = answers.unary(Stores(), self._jobs)
        self._unary = {name: _of_behaviour(answer) for name, answer in good.items()} | {
            "Health": self._model.health,
            "Free": self._model.free,
            "LoadModel": self._model.load,
            "Predict": self._model.predict,
            "Status": self._model.status,
            "GetMetrics": self._model.metrics,
        }
        self._streams = streams.server(self._jobs)
        self._token = token
        self._workers = Slots()
        self._log = disorder.LogWriter()
        self._tasks: set[asyncio.Task[None]] = set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers of all RPCs in the contract."""
        made = {}
        for method in SERVICE.methods:
            streams_in, streams_out = method.client_streaming, method.server_streaming
            if streams_in:
                behaviour = self._both(method.name)
            else:
                behaviour = (self._server if streams_out else self._single)(method.name)
            kinds = {True: "stream", False: "unary"}
            make = getattr(grpc, f"{kinds[streams_in]}_{kinds[streams_out]}_rpc_method_handler")
            made[method.name] = make(
                behaviour,
                request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
                response_serializer=message_factory.GetMessageClass(
                    method.output_type
                ).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(SERVICE.full_name, made)

    # The kinds of RPC

    def _single(self, name: str) -> Callable[[Any, Any], Any]:
        answer = self._unary[name]

        async def unary(request: Any, context: Any) -> Any:
            call = await self._enter(name, context)
            try:
                await self._admit(call, getattr(request, "ModelIdentity", ""))
                result = answer(request, call)
                if asyncio.iscoroutine(result):
                    result = await result
                return result
            except (Refused, BehaviourError) as error:
                await self._refuse(call, error)
            except asyncio.CancelledError:
                self._cancelled(call, "cancelled")
                raise
            finally:
                self._leave(call)

        return unary

    def _server(self, name: str) -> Callable[[Any, Any], Any]:
        answer = self._streams[name]

        async def server_stream(request: Any, context: Any) -> AsyncIterator[Any]:
            call = await self._enter(name, context)
            try:
                await self._admit(call, getattr(request, "ModelIdentity", ""))
                wanted = str(getattr(request, "Prompt", ""))
                fails = wanted.removeprefix("fail-after:") if "fail-after:" in wanted else ""
                for sent, message in enumerate(answer(request, call.how), start=1):
                    yield self._model.filled(message, call.how)
                    if fails and sent == 3:
                        raise Refused(status_code(fails), f"requested status {fails}")
                    await self._between(call, sent)
            except (Refused, BehaviourError) as error:
                await self._refuse(call, error)
            except (asyncio.CancelledError, GeneratorExit):
                self._cancelled(call, "stream cancelled")
                raise
            finally:
                self._leave(call)

        return server_stream

    def _both(self, name: str) -> Callable[[Any, Any], Any]:
        answer = streams.BIDIRECTIONAL[name]

        async def both_streams(requests: Any, context: Any) -> AsyncIterator[Any]:
            call = await self._enter(name, context)
            try:
                await self._admit(call, "")
                sent = 0
                async for message in answer(requests, call.how):
                    yield message
                    sent += 1
                    await self._between(call, sent)
            except (Refused, BehaviourError) as error:
                await self._refuse(call, error)
            except (asyncio.CancelledError, GeneratorExit):
                self._cancelled(call, "stream cancelled")
                raise
            finally:
                self._leave(call)

        return both_streams

    # The stages of a call

    async def _enter(self, name: str, context: Any) -> Call:
        try:
            call = Call(name, context, self._script)
        except BehaviourError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise
        if call.how.check_token and not allowed(call.metadata, self._token):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong bearer token")
        if call.how.workers:
            await self._workers.take(call.how.workers)
            call.worker = True
        return call

    async def _admit(self, call: Call, identity: str) -> None:
        how, context = call.how, call.context
        if how.log:
            self._log.write(how.log, call.name)
        if how.flood:
            self._flood.ensure()
        echoed = tuple((key, value) for key, value in call.metadata if key.startswith(ECHO))
        context.set_trailing_metadata(TRAILING + echoed)
        await context.send_initial_metadata(INITIAL + echoed)
        if how.unimplemented and call.name in how.unimplemented.replace(" ", "").split(","):
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"{call.name} is not implemented")
        if call.name in _CONTROL:
            return
        if how.needs_model and self._model.options is None and call.name not in _NEEDS_NO_MODEL:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "model not loaded")
        loaded = how.identity or (self._model.options.Model if self._model.options else "")
        if identity and loaded and identity != loaded:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"model identity mismatch: this is {loaded!r}")
        if how.crash:
            disorder.crash(how, words="about to crash", default="SIGKILL")
        if how.status:
            raise Refused(
                status_code(how.status), how.status_text or f"requested status {how.status}"
            )
        if how.parallel:
            if not how.queue and self._model.slots.taken >= how.parallel:
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "all slots are in use")
            await self._model.slots.take(how.parallel)
        else:
            self._model.slots.taken += 1
        call.slot = True
        if how.call_memory_mib:
            call.memory = disorder.memory(how.call_memory_mib)
        if how.leak_mib:
            self._model.leak(how.leak_mib)
        if how.call_seconds:
            await asyncio.sleep(how.call_seconds)
        if how.call == "close":
            disorder.close_connections()
        if how.call != "ok":
            await asyncio.Event().wait()

    async def _between(self, call: Call, sent: int) -> None:
        """Pause or misbehave after a message of a stream."""
        how = call.how
        if sent == how.crash_after_messages:
            # The message has not left this process yet.
            await asyncio.sleep(how.token_seconds or 0.01)
            disorder.crash(how, words="about to crash", default="SIGKILL")
        if sent == how.stall_after:
            await asyncio.Event().wait()
        if how.token_seconds:
            await asyncio.sleep(how.token_seconds)

    async def _refuse(self, call: Call, error: Refused | BehaviourError) -> None:
        """End the call with a status that has details, as a backend written with care does."""
        code = error.code if isinstance(error, Refused) else grpc.StatusCode.INVALID_ARGUMENT
        status = status_pb2.Status(code=code.value[0], message=str(error))
        detail = AnyMessage()
        detail.Pack(error_details_pb2.ErrorInfo(reason="TOLD_TO", domain="fake"))
        status.details.append(detail)
        echoed = tuple((key, value) for key, value in call.metadata if key.startswith(ECHO))
        trailing = (("grpc-status-details-bin", status.SerializeToString()), *TRAILING, *echoed)
        await call.context.abort(code, str(error), trailing)

    def _cancelled(self, call: Call, text: str) -> None:
        disorder.note(call.how, text)
        if call.how.ignore_cancel and call.slot:
            # The client is gone, but the engine keeps working.
            call.slot = False
            self._hold(self._work_on)

    async def _work_on(self) -> None:
        await asyncio.Event().wait()

    def _leave(self, call: Call) -> None:
        call.memory = None
        if call.slot:
            self._model.slots.give_back()
        if call.worker:
            self._workers.give_back()

    def _hold(self, work: Callable[[], Any]) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _of_behaviour(answer: Answer) -> Callable[[Any, Call], Any]:
    return lambda request, call: answer(request, call.how)


class Newer(grpc.GenericRpcHandler):
    """RPCs that are not in the contract yet, one of them with a stream of requests."""

    def service(self, details: Any) -> Any:
        """Return the handler of `CountUploads` or `Reverse`."""
        if details.method == "/backend.Backend/CountUploads":

            async def count(requests: AsyncIterator[bytes], context: Any) -> bytes:
                return str(len([request async for request in requests])).encode()

            return grpc.stream_unary_rpc_method_handler(count)
        if details.method == "/backend.Backend/Reverse":

            async def reverse(request: bytes, context: Any) -> bytes:
                return request[::-1]

            return grpc.unary_unary_rpc_method_handler(reverse)
        return None
