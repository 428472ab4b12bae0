"""Interceptors for all four kinds of RPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
from grpc import aio
from grpc_interceptor.server import AsyncServerInterceptor

Behaviour = Callable[[Any, Any], Any]
"""A handler's function, called with the request (or an iterator of requests) and the context."""

_FACTORIES: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Interceptor(AsyncServerInterceptor):
    """Wraps calls with a single response in `intercept`, and with streamed ones in `stream_handler`.

    The library's own dispatch adds a generator around each stream and leaves closing it to the garbage
    collector; but a handler's `finally` (which releases resources) must run when the call ends.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one call, for a server that was given this interceptor."""
        handler = await continuation(handler_call_details)
        return self.wrap(handler, handler_call_details.method) if handler else None

    def wrap(self, handler: Any, name: str) -> Any:
        """Return the handler of the method `name`, wrapped."""
        wrapped: Behaviour
        if handler.response_streaming:
            many = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrapped = self.stream_handler(many, name)
        else:
            one = handler.stream_unary if handler.request_streaming else handler.unary_unary

            async def wrapped(request: Any, context: Any) -> Any:
                return await self.intercept(one, request, context, name)

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

    def stream_handler(self, method: Behaviour, method_name: str) -> Behaviour:
        """Return the wrapped handler of a call with streamed responses.

        It MUST be an async generator function, because grpc.aio inspects the function, and it MUST
        close the stream that `responses` returns.
        """
        return method


class InterceptedServer:
    """A proxy for a server while services are added, which wraps their handlers in interceptors.

    gRPC itself consults every interceptor at every call: 20 us per call for two, also for services that
    need none. This does it once per method.
    """

    def __init__(self, server: aio.Server, interceptors: Sequence[Interceptor]) -> None:
        """Add to `server`; the outermost interceptor is the first."""
        self._server = server
        self._interceptors = tuple(interceptors)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add services, as aio.Server does."""
        wrapped = tuple(_Intercepted(each, self._interceptors) for each in handlers)
        self._server.add_generic_rpc_handlers(wrapped)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Do nothing: generated code adds each method a second time, as a "registered" one.

        grpc.aio keeps a task for each of those, and checks all of them at every call: 30 us per call
        for the loader's 25 methods.
        """


class _Intercepted(grpc.GenericRpcHandler):
    """Handlers wrapped in interceptors, each at its first use."""

    _KEPT = 1000
    """More methods than any service has; a limit, because clients can send any name."""

    def __init__(
        self, handlers: grpc.GenericRpcHandler, interceptors: Sequence[Interceptor]
    ) -> None:
        self._handlers = handlers
        self._interceptors = interceptors
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = self._handlers.service(handler_call_details)
        if handler is None:
            return None
        name = handler_call_details.method
        kept, wrapped = self._wrapped.get(name, (None, None))
        if kept is not handler:
            wrapped = handler
            for interceptor in reversed(self._interceptors):
                wrapped = interceptor.wrap(wrapped, name)
            if len(self._wrapped) < self._KEPT:
                self._wrapped[name] = (handler, wrapped)
        return wrapped


def responses(method: Behaviour, request_or_iterator: Any, context: Any) -> Any:
    """Start a handler and return its responses, to be closed with `close`."""
    started = method(request_or_iterator, context)
    return started if hasattr(started, "__aiter__") else _none(started)


async def close(stream: Any) -> None:
    """Close a stream, which runs the `finally` clauses of its handler."""
    if hasattr(stream, "aclose"):
        await stream.aclose()


async def _none(running: Awaitable[None]) -> AsyncIterator[Any]:
    """Await a handler that uses context.read() and context.write() and so returns nothing."""
    await running
    return
    yield
