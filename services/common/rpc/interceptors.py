"""The interceptors around every call: request ids, accounting, and errors as statuses.

A service that must be fast can do without them (AccountingMount): it then does the same itself, with
`request_id`, `abort`, `code_name` and CallAccounts.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import Message
from grpc import aio

from services.common.errors import (
    CorralError,
    InternalError,
    MessageTooLargeError,
    NotImplementedYetError,
)
from services.common.process.logging import bind_request_id, bound_request_id, get_logger
from services.common.streams import Counted, Until

from . import status
from .call_records import CallAccounts, CallRecord
from .interceptor_base import Behaviour, Interceptor, close, responses

REQUEST_ID_KEY: Final = "x-request-id"
# Characters: enough for any tracing system's id, and too few to fill a log.
_REQUEST_ID_LENGTH: Final = 128
# Seconds. A client whose deadline passes sends a cancel, which may arrive just before the server's own
# deadline (counted from the call's arrival): a cancel this close to it counts as the deadline.
_DEADLINE_SLACK: Final = 0.05

_REFLECTION: Final = "/grpc.reflection."

_log = get_logger(__name__)


class ErrorInterceptor(Interceptor):
    """Turns a handler's exceptions into statuses with details; the innermost interceptor."""

    def __init__(self, *, max_message_size: int | None = None) -> None:
        """`max_message_size`: bytes of a request, for a server whose own limit is higher."""
        self._max_message_size = max_message_size

    async def intercept(
        self,
        method: Callable[..., Any],
        request_or_iterator: Any,
        context: Any,
        method_name: str,
    ) -> Any:
        """Abort with the error's status."""
        try:
            self._check_size(request_or_iterator)
            return await method(request_or_iterator, context)
        except aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - for any exception, the client gets a status
            await abort(context, error, method_name, bound_request_id())

    def stream_handler(self, method: Behaviour, method_name: str) -> Behaviour:
        """Abort with the error's status, also after some responses."""

        async def handle(request_or_iterator: Any, context: Any) -> AsyncIterator[Any]:
            stream = None
            try:
                self._check_size(request_or_iterator)
                stream = responses(method, request_or_iterator, context)
                async for response in stream:
                    yield response
            except aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                await abort(context, error, method_name, bound_request_id())
            finally:
                await close(stream)

        return handle

    def _check_size(self, request: Any) -> None:
        limit = self._max_message_size
        if limit is not None and isinstance(request, Message) and request.ByteSize() > limit:
            raise MessageTooLargeError.of("request", request.ByteSize(), limit)


class CallInterceptor(Interceptor):
    """Gives each call its request id, and records its end; the outermost interceptor.

    The id is returned in the trailing metadata: grpc.aio cannot add to the initial metadata that a
    handler sends, and if they were sent from here, the handler's own attempt would fail.
    """

    def __init__(
        self,
        accounts: CallAccounts,
        *,
        stopping: asyncio.Event | None = None,
    ) -> None:
        """`accounts` gets a record of each call.

        Streams of requests to the reflection service end when `stopping` is set: an API browser that
        is left open must not delay the drain.
        """
        self._accounts = accounts
        self._stopping = stopping

    async def intercept(
        self,
        method: Callable[..., Any],
        request_or_iterator: Any,
        context: Any,
        method_name: str,
    ) -> Any:
        """Record a call with one response."""
        call = _Call(method_name, context, request_or_iterator, "unary")
        try:
            response = await method(call.requests, context)
            call.messages_out = 1
        except BaseException as error:
            call.error = error
            raise
        finally:
            self._accounts.ended(call.end())
        return response

    def stream_handler(self, method: Behaviour, method_name: str) -> Behaviour:
        """Record a call with streamed responses."""
        stopping = self._stopping if method_name.startswith(_REFLECTION) else None

        async def handle(request_or_iterator: Any, context: Any) -> AsyncIterator[Any]:
            call = _Call(method_name, context, request_or_iterator, "stream", stopping)
            stream = None
            try:
                stream = responses(method, call.requests, context)
                async for response in stream:
                    call.messages_out += 1
                    yield response
            except BaseException as error:
                call.error = error
                raise
            finally:
                try:
                    await close(stream)
                finally:
                    self._accounts.ended(call.end())

        return handle


class _Call:
    """One call, from its start to its record."""

    __slots__ = (
        "_context",
        "_counted",
        "_kind",
        "_method",
        "_peer",
        "_request_id",
        "_started",
        "error",
        "messages_out",
        "requests",
    )

    def __init__(
        self,
        method: str,
        context: Any,
        requests: Any,
        response_kind: str,
        stopping: asyncio.Event | None = None,
    ) -> None:
        self._started = time.perf_counter()
        self._method = method
        self._context = context
        # Read now: an abandoned stream is closed after gRPC has freed the call, when this would crash.
        self._peer: str = context.peer()
        self.error: BaseException | None = None
        self.messages_out = 0
        self.requests = requests
        self._counted: Counted | None = None
        if hasattr(requests, "__aiter__"):
            if stopping is not None:
                requests = Until(requests, stopping)
            self.requests = self._counted = Counted(requests)
        self._kind = f"{'unary' if self._counted is None else 'stream'}_{response_kind}"
        self._request_id = request_id(context.invocation_metadata())
        # Each call is its own task with its own context: nothing to undo.
        bind_request_id(self._request_id)
        # Set now for a handler that aborts, and again at the end for one that sets its own metadata.
        self._echo()

    def end(self) -> CallRecord:
        self._echo()
        return CallRecord(
            method=self._method,
            kind=self._kind,
            code=code_name(self._context, self.error),
            duration=time.perf_counter() - self._started,
            peer=self._peer,
            request_id=self._request_id,
            messages_in=1 if self._counted is None else self._counted.count,
            messages_out=self.messages_out,
        )

    def _echo(self) -> None:
        trailing = self._context.trailing_metadata() or ()
        if not any(key == REQUEST_ID_KEY for key, _ in trailing):
            self._context.set_trailing_metadata((*trailing, (REQUEST_ID_KEY, self._request_id)))


def code_name(context: Any, error: BaseException | None) -> str:
    """Return the name of a call's final code, given its handler's `error`."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        left = context.time_remaining()
        return "CANCELLED" if left is None or left > _DEADLINE_SLACK else "DEADLINE_EXCEEDED"
    code = context.code()
    if code is None or code == 0:
        return "OK" if error is None else "UNKNOWN"
    return code.name if isinstance(code, grpc.StatusCode) else _NAMES.get(code, "UNKNOWN")


_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def request_id(metadata: Any) -> str:
    """Return the caller's request id if it is valid, or else a new one."""
    for key, value in metadata or ():
        if key == REQUEST_ID_KEY:
            if is_request_id(value):
                return str(value)
            break
    return new_request_id()


def is_request_id(value: str | bytes) -> bool:
    """Whether a caller's request id is valid."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= _REQUEST_ID_LENGTH
        and value.isascii()
        and value.isprintable()
    )


def new_request_id() -> str:
    """Return a new request id."""
    # As good as a UUID, and four times as fast.
    return os.urandom(16).hex()


async def abort(context: Any, error: Exception, method: str, bound: str | None) -> NoReturn:
    """End a call with the error's status and details; trailers that are already set are kept.

    `bound` is the call's request id, by which an unexpected error can be found in the log.
    """
    if isinstance(error, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED:
        # Raised by generated code for a method that the servicer does not have.
        error = NotImplementedYetError.of(method)
    if not isinstance(error, CorralError):
        _log.error("unexpected error in a handler", method=method, exc_info=error)
        error = InternalError(
            status.INTERNAL_TEXT, metadata={"request_id": bound} if bound else None
        )
    wire = status.to_status(error)
    trailing = [pair for pair in context.trailing_metadata() or () if pair[0] != status.DETAILS_KEY]
    if bound and all(key != REQUEST_ID_KEY for key, _ in trailing):
        trailing.append((REQUEST_ID_KEY, bound))
    await context.abort(
        status.status_code(error), wire.message, (*trailing, *status.trailing_metadata(wire))
    )
    raise error  # never reached: `abort` raises
