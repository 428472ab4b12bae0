"""Where an interceptor takes hold of a call, whichever of the four kinds it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
from grpc_interceptor.server import AsyncServerInterceptor

Behaviour = Callable[[Any, Any], Any]
"""A handler's function: takes the request (or their iterator) and the context."""

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
    So a subclass handles single responses in `intercept`, as the library has it, and streamed ones in
    the function that `stream_handler` returns.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler, if there is one: unknown methods stay UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        name: str = handler_call_details.method
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
        """Return what handles a call with many responses.

        It MUST be an async generator function, because grpc.aio asks the function itself whether it
        is one, and it MUST close what `responses` gave it.
        """
        return method


def responses(method: Behaviour, request_or_iterator: Any, context: Any) -> Any:
    """Start a handler and return its responses, to be closed with `close`."""
    started = method(request_or_iterator, context)
    return started if hasattr(started, "__aiter__") else _none(started)


async def close(stream: Any) -> None:
    """Run the rest of a handler that is not read to its end: its `finally` clauses."""
    if hasattr(stream, "aclose"):
        await stream.aclose()


async def _none(running: Awaitable[None]) -> AsyncIterator[Any]:
    """Await a handler that uses context.read() and context.write() and so returns nothing."""
    await running
    return
    yield
