"""The data plane: passes each call of `backend.Backend` to the backend that holds its model.

Nothing is parsed or changed on the way: bytes in, bytes out, for all four kinds of RPC, with metadata,
deadline, cancellation, trailers and status details both ways. What is added: the model is loaded when
it is not, the call holds a lease to its end, and a backend's death has a cause.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio

from corral.backend import backend_pb2
from services.common.errors import (
    BackendCrashedError,
    ControlPlaneOnlyError,
    CorralError,
    DeadlineError,
    InvalidRequestError,
    ServiceUnreachableError,
)
from services.common.mounts import GenericMount
from services.common.routing import MODEL_KEY, MODEL_KEY_BINARY
from services.common.tasks import wait_until

from .admission import Caller
from .connection import GrpcConnection
from .instance import Instance, Lease
from .loader import Loader
from .wire import string_field, with_empty_string

SERVICE = backend_pb2.DESCRIPTOR.services_by_name["Backend"]

CONTROL_ONLY = frozenset({"LoadModel", "Free"})
"""The control plane owns them: a client that frees a shared model takes it from all others."""

PROBES = frozenset({"Health", "Status", "GetMetrics"})
"""Never load a model and never count as its use."""

_NOT_PASSED_ON = frozenset(
    {
        MODEL_KEY,
        MODEL_KEY_BINARY,
        "authorization",
        "user-agent",
        "content-type",
        "te",
        "host",
        "connection",
    }
)
"""Metadata of this hop. `authorization` is the client's word to us; the backend gets its own token."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC of the contract, or one it does not have yet."""

    path: str
    name: str
    kind: str
    identity_field: int = 0
    """The number of the request's ModelIdentity; 0 if it has none."""


def methods() -> dict[str, Method]:
    """Return the contract's RPCs by path."""
    found = {}
    for rpc in SERVICE.methods:
        path = f"/{SERVICE.full_name}/{rpc.name}"
        kind = (
            f"{'stream' if rpc.client_streaming else 'unary'}"
            f"_{'stream' if rpc.server_streaming else 'unary'}"
        )
        identity = rpc.input_type.fields_by_name.get("ModelIdentity")
        found[path] = Method(path, rpc.name, kind, identity.number if identity else 0)
    return found


class Gateway(grpc.GenericRpcHandler):
    """Answers for `backend.Backend` on the loader's port."""

    def __init__(self, loader: Loader, *, cause_timeout: float) -> None:
        """`cause_timeout`: seconds that a call which was cut waits to learn why."""
        self._loader = loader
        self._cause_timeout = cause_timeout
        self._prefix = f"/{SERVICE.full_name}/"
        self._handlers = {path: self._handler(method) for path, method in methods().items()}

    def mount(self) -> GenericMount:
        """Return what the server builder mounts."""
        return GenericMount((SERVICE.full_name,), self)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler for a call, None if it is not for this service."""
        path = handler_call_details.method
        if handler := self._handlers.get(path):
            return handler
        if path.startswith(self._prefix):
            # A newer backend's RPC: on the wire, a stream of one message is a unary call.
            return self._handler(Method(path, path.removeprefix(self._prefix), "stream_stream"))
        return None

    def _handler(self, method: Method) -> Any:
        behaviours: Mapping[str, Callable[[Method], Any]] = {
            "unary_unary": self._unary,
            "stream_unary": self._unary,
            "unary_stream": self._stream,
            "stream_stream": self._stream,
        }
        factory = getattr(grpc, f"{method.kind}_rpc_method_handler")
        return factory(behaviours[method.kind](method))

    def _unary(self, method: Method) -> Callable[[Any, Any], Awaitable[bytes]]:
        async def behaviour(request: Any, context: aio.ServicerContext[Any, Any]) -> bytes:
            async with self._passage(method, request, context) as (call, _, failed):
                try:
                    response: bytes = await call
                    if initial := await call.initial_metadata():
                        await context.send_initial_metadata(_passed_back(initial))
                except (grpc.RpcError, asyncio.CancelledError) as error:
                    await failed(error)
                await _finish(call, context)
            return response

        return behaviour

    def _stream(self, method: Method) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        async def behaviour(
            request: Any, context: aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[bytes]:
            async with self._passage(method, request, context) as (call, lease, failed):
                try:
                    if initial := await call.initial_metadata():
                        await context.send_initial_metadata(_passed_back(initial))
                    async for response in call:
                        lease.awaits_client()
                        yield response
                        lease.progresses()
                except (grpc.RpcError, asyncio.CancelledError) as error:
                    await failed(error)
                await _finish(call, context)

        return behaviour

    @asynccontextmanager
    async def _passage(
        self, method: Method, request: Any, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[tuple[Any, Lease, Callable[[BaseException], Awaitable[None]]]]:
        """Lease the model, start the call on its backend, and end it when the client's call ends."""
        if method.name in CONTROL_ONLY:
            raise ControlPlaneOnlyError(
                f"{method.name} is not passed on: load and unload models with"
                " corral.loader.v1.LoaderService"
            )
        metadata = context.invocation_metadata() or ()
        lease, request = await self._lease(method, request, metadata, context)
        call: Any = None
        try:
            if lease.instance.ended.done():  # in the moment between the lease and now
                raise lease.instance.ended.result()
            connection = lease.instance.connection
            assert isinstance(connection, GrpcConnection)
            streams = method.kind.startswith("stream")
            call = connection.method(method.kind, method.path)(
                Requests(request, lease) if streams else request,
                timeout=context.time_remaining(),
                metadata=aio.Metadata(*_passed_on(metadata), *connection.metadata),
            )
            lease.on_cut(call.cancel)

            status = _Status(call) if streams else None

            async def failed(error: BaseException) -> None:
                if status is not None:
                    error = await status.settled(error, self._cause_timeout)
                if _code(error) is not grpc.StatusCode.OK:
                    await self._failed(error, lease.instance, context)
                elif status is not None and status.backends is not None:
                    _add_trailing(context, status.backends.trailing_metadata())

            yield call, lease, failed
        finally:
            if call is not None:
                call.cancel()  # no-op for one that has ended
            lease.release()

    async def _lease(
        self, method: Method, request: Any, metadata: Any, context: aio.ServicerContext[Any, Any]
    ) -> tuple[Lease, Any]:
        named = _named(metadata)
        identity = string_field(request, method.identity_field) if method.identity_field else ""
        name = self._loader.route(named, identity)
        if method.name in PROBES:
            lease = self._loader.probe(name)
            if lease is None:
                raise self._loader.not_loaded(name)
        else:
            lease = await self._loader.acquire(name, _caller(metadata, context))
        instance = lease.instance
        if identity in (instance.model, name) and identity not in ("", instance.entry.config.model):
            # The backend knows the model by its file. Whoever wrote a name that it has here means the
            # same; empty is what every backend accepts.
            request = with_empty_string(request, method.identity_field)
        return lease, request

    async def _failed(
        self, error: BaseException, instance: Instance, context: aio.ServicerContext[Any, Any]
    ) -> None:
        """Raise what the client is to see: the backend's own status, or the cause of its end."""
        if isinstance(error, asyncio.CancelledError) and not instance.ended.done():
            raise error  # the client went away
        # A backend may answer UNAVAILABLE itself: one that is well has not gone.
        gone = instance.ended.done() or (
            _code(error) in _LOST and not await instance.answers(self._cause_timeout)
        )
        if gone and instance.backend.external and not instance.ended.done():
            self._loader.report_lost(instance, _unreachable(instance, error))
        if gone and (cause := await instance.cause(self._cause_timeout)):
            raise cause from error
        if not isinstance(error, aio.AioRpcError):
            raise error
        if instance.backend.external and _has_no_model(error):
            self._loader.report_lost(instance, _restarted(instance))
            raise _restarted(instance) from error
        trailing = _passed_back(error.trailing_metadata() or ())
        await context.abort(error.code(), error.details() or "", trailing)


def _caller(metadata: Any, context: aio.ServicerContext[Any, Any]) -> Caller:
    left: float | None = context.time_remaining()
    client = next((value for key, value in metadata if key == "corral-client"), context.peer())
    return Caller(client, None if left is None else time.monotonic() + left)


def _named(metadata: Any) -> str | None:
    """Return the name in the metadata, None if there is none. Raises InvalidRequestError."""
    for key, value in metadata:
        if key in (MODEL_KEY, MODEL_KEY_BINARY):
            try:
                name: str = value.decode() if isinstance(value, bytes) else value
            except UnicodeDecodeError:
                raise InvalidRequestError.of(key, "is not UTF-8") from None
            if not name.strip():
                raise InvalidRequestError.of(key, "is empty; name a model, or leave the key out")
            return name
    return None


_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
"""What gRPC answers with when the connection breaks, or when the call was cut from this side."""


_SETTLE = 0.005
"""Seconds from the end of a client's messages to the half-close at the backend: see Requests."""


class Requests:
    """A client's messages, passed on.

    When a client cancels, gRPC ends its messages as if it had closed its side, and says a moment later
    that it cancelled. A backend must not take the one for the other (the end of a recording for its
    being thrown away), so the end is passed on after a pause, in which the call is cancelled if it was.
    """

    __slots__ = ("_lease", "_requests")

    def __init__(self, requests: Any, lease: Lease) -> None:
        """Read from the client's `requests`; the lease notes when it is the client's turn."""
        self._requests = requests
        self._lease = lease

    def __aiter__(self) -> Requests:
        """Return itself."""
        return self

    async def __anext__(self) -> Any:
        """Return the next message."""
        self._lease.awaits_client()
        try:
            message = await self._requests.__anext__()
            self._lease.progresses()
            return message
        except StopAsyncIteration:
            self._lease.progresses()
            await asyncio.sleep(_SETTLE)  # there is no event for "it was not cancelled"
            raise


def _unreachable(instance: Instance, error: BaseException) -> CorralError:
    return ServiceUnreachableError(
        f"the backend at {instance.address} cannot be reached: {_said(error)}",
        metadata={"model": instance.model, "backend": instance.backend.name},
    )


def _restarted(instance: Instance) -> CorralError:
    return BackendCrashedError(
        f"the backend at {instance.address} was restarted and has lost model {instance.model!r}; the"
        " next call loads it again",
        metadata={"model": instance.model, "backend": instance.backend.name},
    )


def _has_no_model(error: aio.AioRpcError) -> bool:
    """Whether it says so in the contract's words; older backends do with UNKNOWN."""
    return (
        error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNKNOWN)
        and "model not loaded" in (error.details() or "").lower()
    )


def _said(error: BaseException) -> str:
    return (isinstance(error, aio.AioRpcError) and error.details()) or "it does not answer"


class _Status:
    """How the backend ended a call to which messages are streamed.

    When a backend ends a call while messages to it are on their way, grpc.aio puts an INTERNAL of its
    own in place of the backend's status, before or after that arrives. So it is noted at each change.
    """

    __slots__ = ("backends",)

    def __init__(self, call: Any) -> None:
        """Follow the call."""
        self.backends: aio.AioRpcError | None = None
        call.add_done_callback(self._changed)

    def _changed(self, call: Any) -> None:
        code, details = _now(call.code()), _now(call.details())
        if code is not grpc.StatusCode.INTERNAL or details != _GRPCS_OWN:
            initial, trailing = _now(call.initial_metadata()), _now(call.trailing_metadata())
            self.backends = aio.AioRpcError(code, initial, trailing, details)

    async def settled(self, error: BaseException, timeout: float) -> BaseException:
        """Return the error with the backend's status, which may come a moment after gRPC's own."""
        if _code(error) is not grpc.StatusCode.INTERNAL or _said(error) != _GRPCS_OWN:
            return error
        with suppress(DeadlineError):
            await wait_until(lambda: self.backends is not None, timeout=timeout, what="a status")
        return self.backends or error


_GRPCS_OWN = "Internal error from Core"


def _now(answer: Coroutine[Any, Any, Any]) -> Any:
    """Return what is known already: the parts of an ended call's status, which one can only await."""
    try:
        answer.send(None)
    except StopIteration as known:
        return known.value
    answer.close()
    return None


async def _finish(call: Any, context: aio.ServicerContext[Any, Any]) -> None:
    if trailing := await call.trailing_metadata():
        _add_trailing(context, trailing)


def _add_trailing(context: aio.ServicerContext[Any, Any], trailing: Any) -> None:
    own = context.trailing_metadata() or ()
    context.set_trailing_metadata((*own, *_passed_back(trailing or ())))


def _code(error: BaseException) -> grpc.StatusCode | None:
    return error.code() if isinstance(error, aio.AioRpcError) else None


def _passed_on(metadata: Any) -> list[tuple[str, str | bytes]]:
    return [
        (key, value)
        for key, value in metadata
        if key not in _NOT_PASSED_ON and (not key.startswith("grpc-") or key in _TRACING)
    ]


_TRACING = frozenset({"grpc-trace-bin", "grpc-tags-bin"})


def _passed_back(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (key, value)
        for key, value in metadata
        if not key.startswith("grpc-") or key == "grpc-status-details-bin"
    )
