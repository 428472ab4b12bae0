"""What happens around every RPC: the token is checked, errors get their status code."""

import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from grpc import aio

from . import errors

log = logging.getLogger(__name__)

_CODES: dict[type[errors.BackendError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Missing: grpc.StatusCode.NOT_FOUND,
    errors.BadModel: grpc.StatusCode.FAILED_PRECONDITION,
    errors.IdentityMismatch: grpc.StatusCode.NOT_FOUND,
    errors.NotLoaded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unloaded: grpc.StatusCode.ABORTED,
    errors.EngineFailed: grpc.StatusCode.INTERNAL,
    # What a client sees when the connection breaks a moment later; which of the two is quicker is chance.
    errors.EngineGone: grpc.StatusCode.UNAVAILABLE,
}

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
Context: TypeAlias = "aio.ServicerContext[Any, Any]"


class TokenInterceptor(aio.ServerInterceptor):
    """Lets only callers in that send `authorization: Bearer <token>`."""

    def __init__(self, token: str) -> None:
        """Expect this token."""
        self._expected = f"Bearer {token}".encode()
        self._refuse: Handler = grpc.unary_unary_rpc_method_handler(_refuse)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Check the metadata before the RPC's own handler is looked up."""
        for key, value in handler_call_details.invocation_metadata or ():
            if key == "authorization":
                given = value if isinstance(value, bytes) else value.encode()
                if hmac.compare_digest(given, self._expected):
                    return await continuation(handler_call_details)
        return self._refuse


async def _refuse(_: object, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong bearer token")


class ErrorInterceptor(aio.ServerInterceptor):
    """Ends an RPC with the status code of the error that it raised."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Wrap the RPC's handler, whichever of the kinds served here it is."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        made: Handler = getattr(grpc, f"{kind}_rpc_method_handler")(
            _wrap(getattr(handler, kind), handler_call_details.method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return made


def _wrap(behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
    """Wrap a coroutine or an asynchronous generator; streams here are written by coroutines."""

    async def call(request: Any, context: Context) -> Any:
        try:
            result = behaviour(request, context)
            if not isinstance(result, AsyncIterator):
                return await result
            async for message in result:
                await context.write(message)
        except errors.BackendError as error:
            log.info("%s: %s: %s", method, type(error).__name__, error)
            await context.abort(_CODES[type(error)], str(error))
        except (aio.AbortError, NotImplementedError):
            raise
        except Exception:
            log.exception("%s failed", method)
            await context.abort(grpc.StatusCode.INTERNAL, "the backend failed; see its log")

    return call
