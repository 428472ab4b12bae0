"""One call through the gateway: from the client to an instance and back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import grpc
from grpc import aio

from services.common.errors import ControlPlaneOnlyError, MessageTooLargeError
from services.common.process.logging import bind_request_id
from services.common.rpc.call_records import CallRecord
from services.common.rpc.interceptors import abort, code_name
from services.common.rpc.status import status_code
from services.loader.admission.meter import Caller
from services.loader.instances.instance import Lease
from services.loader.loader import Loader

from . import backend_status
from .backend_channel import GrpcConnection
from .backend_status import BackendStatus, canceller
from .field_access import string_field, with_empty_string
from .metadata import POSITION_KEY, Heading, Pair, Pairs, passed_back, trailers
from .methods import CONTROL_ONLY, PROBES, Method

HALF_CLOSE_PAUSE = 0.005
"""Seconds from the end of a client's messages to the half-close at the backend: see `_send`."""

_NO_RESPONSE = "the backend ended the call as if it had answered, but there is no response"


class Passage:
    """One call: `begin` it, pass the answer back, `fail` if something is raised, and always `end` it."""

    __slots__ = (
        "_asks",
        "_call",
        "_cancel",
        "_cause_timeout",
        "_code",
        "_context",
        "_gives",
        "_headed",
        "_heading",
        "_lease",
        "_loader",
        "_max_message_size",
        "_method",
        "_peer",
        "_queue_told",
        "_received",
        "_refusal",
        "_sending",
        "_sent",
        "_started",
        "_status",
    )

    def __init__(
        self,
        method: Method,
        context: aio.ServicerContext[Any, Any],
        loader: Loader,
        *,
        max_message_size: int,
        cause_timeout: float,
    ) -> None:
        """Read the call's metadata; starts nothing and raises nothing."""
        self._started = time.perf_counter()
        self._method = method
        self._context: Any = context
        self._loader = loader
        self._max_message_size = max_message_size
        self._cause_timeout = cause_timeout
        self._heading = Heading(context.invocation_metadata() or ())
        self._peer: str = context.peer()
        self._lease: Lease | None = None
        self._call: Any = None
        self._cancel: Callable[[], object] = bool  # nothing to cancel yet
        self._headed = False
        # While either waits for the client, the backend owes nothing: see Lease.progress.
        self._asks = self._gives = False
        self._sending: asyncio.Task[None] | None = None
        self._status: BackendStatus | None = None
        self._queue_told: asyncio.Task[None] | None = None
        self._refusal: Exception | None = None
        self._code = "CANCELLED"
        self._received = 0
        self._sent = 0
        # Each call is a task of its own, and so has its own copy of these; nothing needs undoing.
        bind_request_id(self._heading.request_id)

    async def begin(self, request: Any) -> Any:
        """Lease the model and start the call at its backend; `request` is None if streamed."""
        method = self._method
        if method.name in CONTROL_ONLY:
            raise ControlPlaneOnlyError(
                f"{method.name} is not passed on: load and unload models with"
                " corral.loader.v1.LoaderService"
            )
        if request is not None:
            self._received = 1
            self._check_size("request", request)
        lease, request = await self._acquire(request)
        if self._queue_told is not None:
            try:
                await self._queue_told
            except aio.BaseError as gone:
                raise _gone() from gone
        if lease.instance.ended.done():  # since the lease was granted
            raise lease.instance.ended.result()
        connection = lease.instance.connection
        assert isinstance(connection, GrpcConnection)
        start = connection.method(method.kind, method.path)
        options: dict[str, Any] = {
            "timeout": self._context.time_remaining(),
            "metadata": Pairs((*self._heading.passed_on, *connection.metadata)),
        }
        if request is not None:
            self._call = call = start(request, **options)
            self._cancel = canceller(method.kind, call)
        else:
            self._call = call = start(**options)
            self._cancel = call.cancel
            self._status = BackendStatus(call)
            self._sending = asyncio.create_task(self._send(call, lease))
        lease.on_cut(self._cancel)
        return call

    async def pass_back_one(self, call: Any) -> bytes:
        """Return the call's one response."""
        await call.code()  # gRPC's own wait must not be cancelled: see `canceller`
        response: bytes | None = await call
        initial = await call.initial_metadata()
        if response is None:
            trailing = await call.trailing_metadata()
            raise aio.AioRpcError(grpc.StatusCode.INTERNAL, initial, trailing, _NO_RESPONSE)
        await self._pass_back_initial(initial)
        await self._finish(call)
        self._sent = 1
        return response

    async def pass_back_all(self, call: Any) -> None:
        """Send the responses as they come, each once the client took the one before."""
        initial = await call.initial_metadata()
        # A client may wait for the initial metadata, even empty, before it sends more.
        await self._pass_back_initial(initial, empty=self._sending and not call.done())
        lease, write, now = self._lease, self._context.write, time.monotonic
        assert lease is not None
        async for response in call:
            self._gives = True
            lease.progress = math.inf  # it is the client's turn
            try:
                await write(response)
            except aio.BaseError as gone:
                raise _gone() from gone
            self._gives = False
            lease.progress = math.inf if self._asks else now()
            self._sent += 1
        await self._finish(call)

    async def fail(self, error: BaseException) -> None:
        """End the call with the backend's own status, or with the reason why there is none.

        Raises CancelledError if the client has gone. An AbortError is not raised: gRPC keeps it with the call,
        and raises it when the handler returns. With a traceback it would reference the call's
        frames, and the frames the call: a cycle that holds whole messages until the next garbage
        collection.
        """
        try:
            if isinstance(error, asyncio.CancelledError | aio.AbortError) and not self._explained:
                raise error  # the client went away
            if self._queue_told is not None:
                with suppress(Exception):  # the client may have gone meanwhile
                    await self._queue_told
            if self._refusal is not None:
                error = self._refusal
            elif self._call is not None:
                error = await self._outcome(error)
            if isinstance(error, aio.AioRpcError) and error.code() is grpc.StatusCode.OK:
                if self._method.kind.endswith("stream"):
                    self._set_trailers(self._trailing(error))
                    self._code = "OK"
                    return
                # An empty message in place of the lost one would be a wrong answer.
                error = aio.AioRpcError(
                    grpc.StatusCode.INTERNAL,
                    error.initial_metadata(),
                    error.trailing_metadata(),
                    _NO_RESPONSE,
                )
            await self._abort(error)
        except BaseException as final:
            if self._code == "CANCELLED":
                self._code = code_name(self._context, final)
            if isinstance(final, aio.AbortError):
                final.__traceback__ = final.__context__ = None
                return
            if isinstance(final, aio.BaseError):
                raise _gone() from final  # the client did not take the status
            raise
        finally:
            del error  # whose traceback has this frame

    def end(self) -> CallRecord:
        """Release everything that the call holds and return its record."""
        if self._sending is not None:
            self._sending.cancel()
        self._cancel()  # no-op for a call that has ended
        if self._lease is not None:
            self._lease.release()
        return CallRecord(
            self._method.path,
            self._method.kind,
            self._code,
            time.perf_counter() - self._started,
            self._peer,
            self._heading.request_id,
            self._received,
            self._sent,
        )

    # To the backend

    async def _acquire(self, request: Any) -> tuple[Lease, Any]:
        method, loader = self._method, self._loader
        field = method.identity_field
        identity = string_field(request, field) if field else ""
        name = loader.route(self._heading.model(), identity)
        if method.name in PROBES:
            probe = loader.probe(name)
            if probe is None:
                raise loader.not_loaded(name)
            lease = probe
        else:
            left = self._context.time_remaining()
            caller = Caller(
                client=self._heading.client or self._peer,
                deadline=None if left is None else time.monotonic() + left,
                queued=self._tell_position,
            )
            lease = await loader.acquire(name, caller)
        self._lease = lease
        instance = lease.instance
        if (
            identity
            and identity in (instance.model, name)
            and identity != instance.entry.config.model
        ):
            # The backend knows the model by its file, not by its name in this loader. Every backend
            # accepts an empty name.
            request = with_empty_string(request, field)
        return lease, request

    def _tell_position(self, position: int) -> None:
        """Send the client its position in the queue."""
        if self._queue_told is None:
            metadata: tuple[Pair, ...] = ((POSITION_KEY, str(position)),)
            self._queue_told = asyncio.create_task(self._context.send_initial_metadata(metadata))

    async def _send(self, call: Any, lease: Lease) -> None:
        """Pass the client's messages on, each once the backend took the one before.

        When a client cancels, gRPC ends its messages as if it had closed its side, and reports the
        cancellation a moment later. A backend must not confuse the two (a finished recording and a
        discarded one), so the half-close is passed on after a pause. If the client did cancel, the
        call is cancelled during the pause.
        """
        read, write, now, end = self._context.read, call.write, time.monotonic, aio.EOF
        try:
            while True:
                self._asks = True
                lease.progress = math.inf
                message = await read()
                self._asks = False
                if not self._gives:
                    lease.progress = now()
                if message is end:
                    break
                self._received += 1
                self._check_size("request", message)
                await write(message)
            await asyncio.sleep(HALF_CLOSE_PAUSE)  # no event reports that a call was not cancelled
            await call.done_writing()
        except (aio.AioRpcError, aio.BaseError, asyncio.InvalidStateError):
            return  # the backend has ended the call; its responses end with the reason
        except Exception as error:  # noqa: BLE001 - `fail` sends it to the client
            self._refusal = error
            call.cancel()

    def _check_size(self, side: str, message: bytes) -> None:
        if len(message) > self._max_message_size:
            raise MessageTooLargeError.of(side, len(message), self._max_message_size)

    # To the client

    async def _pass_back_initial(self, initial: Any, *, empty: Any = False) -> None:
        if self._queue_told is None and not self._headed and (initial or empty):
            self._headed = True
            try:
                await self._context.send_initial_metadata(passed_back(initial))
            except aio.BaseError as gone:
                raise _gone() from gone

    async def _finish(self, call: Any) -> None:
        trailing = await call.trailing_metadata()
        if self._queue_told is not None:
            trailing = (*await call.initial_metadata(), *trailing)
        self._set_trailers(trailing)
        self._code = "OK"

    def _set_trailers(self, backends: Any) -> None:
        self._context.set_trailing_metadata(
            trailers(self._heading.request_id, self._lease, passed_back(backends))
        )

    def _trailing(self, error: aio.AioRpcError) -> tuple[Pair, ...]:
        """Return a failed call's trailing metadata, plus unsent initial ones if it is too late."""
        late = (error.initial_metadata() or ()) if self._queue_told is not None else ()
        return (*late, *(error.trailing_metadata() or ()))

    @property
    def _explained(self) -> bool:
        """Whether the loader cut the call, not the client."""
        return self._refusal is not None or (
            self._lease is not None and self._lease.instance.ended.done()
        )

    async def _outcome(self, error: BaseException) -> BaseException:
        """Return why the call failed: the backend's own status, or why the backend ended."""
        assert self._lease is not None
        instance = self._lease.instance
        if self._status is not None:
            error = await self._status.settled(error, self._cause_timeout)
        code = backend_status.code(error)
        if code is grpc.StatusCode.OK:
            return error
        # A backend may answer UNAVAILABLE itself: if it is healthy, it has not ended.
        gone = instance.ended.done() or (
            code in backend_status.LOST and not await instance.answers(self._cause_timeout)
        )
        if gone and instance.backend.external and not instance.ended.done():
            self._loader.report_lost(instance, backend_status.unreachable(instance, error))
        if gone and (cause := await instance.wait_ended(self._cause_timeout)):
            return cause
        if instance.backend.external and backend_status.has_no_model(error):
            self._loader.report_lost(instance, backend_status.restarted(instance))
            return backend_status.restarted(instance)
        return backend_status.too_large(error, self._max_message_size) or error

    async def _abort(self, error: BaseException) -> NoReturn:
        if isinstance(error, aio.AioRpcError):
            code, details, trailing = error.code(), error.details() or "", self._trailing(error)
            self._code = code.name
            with suppress(Exception):  # the client may have gone meanwhile
                await self._pass_back_initial(error.initial_metadata())
            await self._context.abort(
                code,
                details,
                trailers(self._heading.request_id, self._lease, passed_back(trailing)),
            )
        if not isinstance(error, Exception):
            raise error
        self._set_trailers(())
        self._code = status_code(error).name
        await abort(self._context, error, self._method.path, self._heading.request_id)


def _gone() -> asyncio.CancelledError:
    """Return the error for a client that stopped reading; gRPC cancels the call a moment later."""
    return asyncio.CancelledError("the client is gone")
