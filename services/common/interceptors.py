"""What happens around every call, for all four kinds of RPC.

Two interceptors and no more: each costs 20-30 us a call.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
import structlog
from grpc import aio
from grpc_interceptor.server import AsyncServerInterceptor

from . import status
from .calls import AccessLog, CallObserver, CallRecord
from .errors import CorralError
from .logs import get_logger

__all__ = [
    "REQUEST_ID_KEY",
    "AccessLog",
    "CallInterceptor",
    "CallObserver",
    "CallRecord",
    "ErrorInterceptor",
]

REQUEST_ID_KEY: Final = "x-request-id"
# As long as any tracing system's id, and too short to fill a log with.
_REQUEST_ID_LENGTH: Final = 128
# A client whose deadline ends sends a cancel, which may arrive a moment before the server's own
# deadline (counted from the call's arrival) is over: within this many seconds it was the deadline.
_DEADLINE_SLACK: Final = 0.05

_log = get_logger(__name__)
_Context = aio.ServicerContext[Any, Any]
_Handler = Any

_FACTORIES: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Interceptor(AsyncServerInterceptor):
    """An AsyncServerInterceptor that tells streamed responses from single ones by the handler's kind.

    The library's own dispatch puts one more generator around each stream and leaves closing it to the
    garbage collector; a handler's `finally` (where a lease is given back) must run when the call ends.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Wrap the handler, if there is one: unknown methods stay UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        name: str = handler_call_details.method
        wrapped: Callable[[Any, _Context], Any]
        if handler.response_streaming:
            many = handler.stream_stream if handler.request_streaming else handler.unary_stream

            # grpc.aio asks the function itself whether it is an async generator, so it has to be one.
            async def stream(request: Any, context: _Context) -> AsyncIterator[Any]:
                responses = self.intercept_stream(many, request, context, name)
                try:
                    async for response in responses:
                        yield response
                finally:
                    await responses.aclose()

            wrapped = stream
        else:
            one = handler.stream_unary if handler.request_streaming else handler.unary_unary

            async def unary(request: Any, context: _Context) -> Any:
                return await self.intercept(one, request, context, name)

            wrapped = unary
        factory = _FACTORIES[handler.request_streaming, handler.response_streaming]
        return factory(
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def intercept(
        self,
        method: Callable[..., Any],
        request_or_iterator: Any,
        context: Any,
        method_name: str,
    ) -> Any:
        """Handle a call with one response."""
        return await method(request_or_iterator, context)

    async def intercept_stream(
        self,
        method: Callable[..., Any],
        request_or_iterator: Any,
        context: Any,
        method_name: str,
    ) -> AsyncGenerator[Any, None]:
        """Handle a call with many responses."""
        responses = method(request_or_iterator, context)
        if not hasattr(responses, "__aiter__"):
            # A handler that uses context.read() and context.write() is a coroutine without a result.
            await responses
            return
        try:
            async for response in responses:
                yield response
        finally:
            if hasattr(responses, "aclose"):
                await responses.aclose()


class ErrorInterceptor(Interceptor):
    """Turns what a handler raises into a status with details; innermost, next to the handler."""

    async def intercept(
        self,
        method: Callable[..., Any],
        request_or_iterator: Any,
        context: Any,
        method_name: str,
    ) -> Any:
        """Abort with the error's status."""
        try:
            return await method(request_or_iterator, context)
        except aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status
            await _abort(context, error, method_name)

    async def intercept_stream(
        self,
        method: Callable[..., Any],
        request_or_iterator: Any,
        context: Any,
        method_name: str,
    ) -> AsyncGenerator[Any, None]:
        """Abort with the error's status, also after some responses."""
        responses = super().intercept_stream(method, request_or_iterator, context, method_name)
        try:
            async for response in responses:
                yield response
        except aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status
            await _abort(context, error, method_name)
        finally:
            await responses.aclose()


class CallInterceptor(Interceptor):
    """Gives each call its request id, and tells the observers how it ended; the outermost one.

    The id comes back in the trailing metadata: grpc.aio has no way to add to the initial metadata that
    a handler may send itself, and sending them from here would make the handler's own attempt fail.
    """

    def __init__(
        self,
        service: str,
        observers: Sequence[CallObserver] = (),
        *,
        stopping: asyncio.Event | None = None,
    ) -> None:
        """Report each call of this service to the observers, in their order.

        Streams of requests to the reflection service end when `stopping` is set: a browser of APIs
        that somebody left open must not hold up the drain.
        """
        self._service = service
        self._observers = tuple(observers)
        self._stopping = stopping
        self._complained: set[int] = set()

    async def intercept(
        self,
        method: Callable[..., Any],
        request_or_iterator: Any,
        context: Any,
        method_name: str,
    ) -> Any:
        """Account for a call with one response."""
        call = _Call(method_name, context, request_or_iterator, "unary")
        try:
            response = await method(call.requests, context)
            call.messages_out = 1
        except BaseException as error:
            call.error = error
            raise
        finally:
            self._report(call)
        return response

    async def intercept_stream(
        self,
        method: Callable[..., Any],
        request_or_iterator: Any,
        context: Any,
        method_name: str,
    ) -> AsyncGenerator[Any, None]:
        """Account for a call with many responses."""
        call = _Call(method_name, context, request_or_iterator, "stream")
        responses = super().intercept_stream(method, call.requests, context, method_name)
        try:
            async for response in responses:
                call.messages_out += 1
                yield response
        except BaseException as error:
            call.error = error
            raise
        finally:
            try:
                await responses.aclose()
            finally:
                self._report(call)

    def _report(self, call: _Call) -> None:
        record = call.end()
        for observer in self._observers:
            try:
                observer.call_ended(record)
            except Exception:  # noqa: BLE001 - an observer's fault is none of the call's
                # Once for each observer: a broken one would else fill the log at the rate of calls.
                if id(observer) not in self._complained:
                    self._complained.add(id(observer))
                    _log.exception("call observer failed", observer=type(observer).__name__)


class _Call:
    """One call, from its start to its record."""

    __slots__ = (
        "_context",
        "_method",
        "_request_id",
        "_response_kind",
        "_started",
        "error",
        "messages_out",
        "requests",
    )

    def __init__(self, method: str, context: Any, requests: Any, response_kind: str) -> None:
        self._started = time.perf_counter()
        self._method = method
        self._context = context
        self._response_kind = response_kind
        self.error: BaseException | None = None
        self.messages_out = 0
        self.requests = _Counted(requests) if hasattr(requests, "__aiter__") else requests
        self._request_id = request_id(context.invocation_metadata())
        # Each call is a task of its own, and so has its own copy of these; nothing needs undoing.
        structlog.contextvars.bind_contextvars(request_id=self._request_id)
        # Set early for a handler that aborts, and again at the end for one that set its own.
        self._echo()

    def end(self) -> CallRecord:
        streamed = isinstance(self.requests, _Counted)
        code = self._code()
        self._echo()
        return CallRecord(
            method=self._method,
            kind=f"{'stream' if streamed else 'unary'}_{self._response_kind}",
            code=code,
            duration=time.perf_counter() - self._started,
            peer=self._context.peer(),
            request_id=self._request_id,
            messages_in=self.requests.count if streamed else 1,
            messages_out=self.messages_out,
        )

    def _echo(self) -> None:
        trailing = self._context.trailing_metadata() or ()
        if not any(key == REQUEST_ID_KEY for key, _ in trailing):
            self._context.set_trailing_metadata((*trailing, (REQUEST_ID_KEY, self._request_id)))

    def _code(self) -> str:
        if isinstance(self.error, asyncio.CancelledError | GeneratorExit):
            left = self._context.time_remaining()
            return "CANCELLED" if left is None or left > _DEADLINE_SLACK else "DEADLINE_EXCEEDED"
        code = self._context.code()
        if code is None or code == 0:
            return "OK" if self.error is None else "UNKNOWN"
        return code.name if isinstance(code, grpc.StatusCode) else _NAMES.get(code, "UNKNOWN")


_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


class _Counted:
    """Counts the requests of a stream as the handler takes them."""

    __slots__ = ("_requests", "count")

    def __init__(self, requests: Any) -> None:
        self._requests = requests.__aiter__()
        self.count = 0

    def __aiter__(self) -> _Counted:
        return self

    async def __anext__(self) -> Any:
        request = await self._requests.__anext__()
        self.count += 1
        return request


def request_id(metadata: Any) -> str:
    """Return the caller's request id, if it is a sane one, or a new one."""
    for key, value in metadata or ():
        if key == REQUEST_ID_KEY and isinstance(value, str):
            if 0 < len(value) <= _REQUEST_ID_LENGTH and value.isascii() and value.isprintable():
                return value
            break
    return uuid.uuid4().hex


async def _abort(context: Any, error: Exception, method: str) -> None:
    if not isinstance(error, CorralError):
        _log.error("unexpected error in a handler", method=method, exc_info=error)
    wire = status.to_status(error)
    kept = [pair for pair in context.trailing_metadata() or () if pair[0] != status.DETAILS_KEY]
    await context.abort(
        status.status_code(error), wire.message, (*kept, *status.trailing_metadata(wire))
    )
