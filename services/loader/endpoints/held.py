"""A connection to a model endpoint while it has no backend, and its end.

Calls wait, are refused or are answered here.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine
from contextlib import suppress
from enum import Enum
from typing import Any

from services.common.errors import CorralError, ModelUnloadedError
from services.loader.admission.connection_lease import CountedCalls
from services.loader.admission.meter import Caller
from services.loader.instances.instance import Instance, Lease

from .backend_frames import BackendFrames, Greeting
from .client_frames import ClientFrames
from .http2 import NO_ERROR, SETTINGS, call_failure, frame, goaway, reply, window_update
from .model_port import Model
from .raw_socket import RawSocket
from .replay_buffer import HeldFrames
from .request_headers import Kind, Request, RequestHeaders
from .streams import OpenStreams

_KEPT_BYTES = 1024 * 1024
"""Bytes kept of a client while its model loads; beyond that, reading from it pauses."""
_IDLE_BYTES = 64 * 1024
_IDLE_REQUESTS = 100
"""Answered requests that may be kept before the client is asked to reconnect."""
_UNREAD_BYTES = 1024 * 1024
"""Answer bytes that may wait for a client that does not read; of a backend's data, one piece."""


class State(Enum):
    """The state of a connection."""

    HELD = 1
    CONNECTING = 2
    SPLICED = 3
    ENDING = 4
    CLOSED = 5


class HeldConnection:
    """A connection before it has a backend, and its end."""

    __slots__ = (
        "_backend",
        "_calls",
        "_client",
        "_closing",
        "_deadlines",
        "_frames",
        "_greeting",
        "_headers",
        "_held",
        "_leases",
        "_loop",
        "_model",
        "_moved",
        "_pending",
        "_probing",
        "_reached",
        "_replies",
        "_streams",
        "_tasks",
        "_timer",
        "state",
    )

    def __init__(self, sock: socket.socket, model: Model) -> None:
        """Send the client the server's SETTINGS and start reading."""
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._client = RawSocket(sock, self._loop)
        self._backend: RawSocket | None = None
        self._streams = OpenStreams()
        self._headers = RequestHeaders()
        self._held: HeldFrames | None = HeldFrames(
            self._streams, self._headers, opened=self._opened, control=self._control
        )
        self._frames: ClientFrames | None = None
        self._replies = BackendFrames(self._streams)
        self._greeting: Greeting | None = None
        self._calls: CountedCalls | None = None
        self._pending = b""
        """The endpoint's own frames, which wait for the end of a backend's frame."""
        self._closing = False
        """Whether a GOAWAY was sent to the client."""
        self._probing = False
        """Whether a probe waits for the backend, which is running."""
        self._reached = 0
        """The highest stream that the backend can have processed; none while it has sent nothing:
        a gRPC server sends its SETTINGS before it reads."""
        self._moved = 0.0
        """Monotonic time when the backend last sent something, or first owed a response."""
        self._leases: list[Lease] = []
        """Leases of calls that waited, until the connection's calls are counted together."""
        self._deadlines: dict[int, float | None] = {}
        """Deadlines of the calls that no backend has seen yet, by stream, in monotonic time."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """Tasks that wait for a lease or prepare an answer, by stream."""
        self._timer: asyncio.TimerHandle | None = None
        self.state = State.HELD
        self._timer = self._loop.call_later(model.handshake_timeout, self.close)
        with suppress(OSError):  # the next read finds the connection broken
            self._client.send(frame(SETTINGS, 0, 0))
        self._client.read(self._from_client)

    @property
    def calls(self) -> int:
        """The number of open calls, including those that wait for the model."""
        return self._streams.calls

    def _from_client(self) -> None:
        raise NotImplementedError

    def _attach(self, instance: Instance) -> None:
        raise NotImplementedError

    # While there is no backend

    def _held_back(self, held: HeldFrames, data: bytes) -> None:
        held.feed(data)
        if self._timer is not None and held.greeted:
            self._timer.cancel()
            self._timer = None
        for stream in held.finished:
            self._withdrawn(stream)
        held.finished.clear()
        self._return_window(held)
        if held.to_client:
            answers = bytes(held.to_client)
            held.to_client.clear()
            self._own(answers)
        if self.state is not State.HELD:
            return
        if self._probing:
            self._probing = False
            if instance := self._model.probe():
                self._attach(instance)
        elif not self._streams.calls and not self._tasks:
            if held.size > _IDLE_BYTES or held.dead > _IDLE_REQUESTS:
                self._end(None)  # it reconnects, with nothing to keep
        elif held.size > _KEPT_BYTES:
            self._client.pause()

    def _return_window(self, held: HeldFrames) -> None:
        if held.returned:
            returned, held.returned = held.returned, 0
            self._own(window_update(0, returned))

    def _opened(self, stream: int, request: Request) -> bool:
        """Accept a call or a probe; return whether it goes to the backend."""
        if request.kind is Kind.CALL:
            left = request.timeout
            self._deadlines[stream] = time.monotonic() + left if left is not None else None
        if self.state is State.CONNECTING:
            if request.kind is Kind.CALL and self._calls is not None:
                self._calls.begin(1)
            return True
        if request.kind is Kind.PROBE:
            self._probing = self._model.probe() is not None
            return self._probing
        self._await_lease(stream)
        return True

    def _await_lease(self, stream: int) -> None:
        caller = Caller(f"endpoint {id(self)}", self._deadlines.get(stream))
        self._tasks[stream] = self._model.spawn(self._wait(stream, caller))

    async def _wait(self, stream: int, caller: Caller) -> None:
        try:
            lease = await self._model.acquire(caller)
        except CorralError as error:
            self._tasks.pop(stream, None)
            self._refuse(stream, error)
            return
        self._tasks.pop(stream, None)
        self._leases.append(lease)
        if len(self._leases) == 1:
            # Other calls waiting for this instance get their leases in the same turn of the loop.
            self._loop.call_soon(self._take_leases)

    def _take_leases(self) -> None:
        if self.state is State.HELD and self._leases:
            self._attach(self._leases[0].instance)
        self._let_go()

    def _let_go(self) -> None:
        leases, self._leases = self._leases, []
        for lease in leases:
            lease.release()

    def _withdrawn(self, stream: int) -> None:
        """Called when the client reset a stream that the backend has not seen."""
        assert self._held is not None
        ended = self._streams.ended(stream)
        if ended and self._calls is not None:
            self._calls.end(ended)
        self._held.leave_out(stream)
        self._deadlines.pop(stream, None)
        if task := self._tasks.pop(stream, None):
            task.cancel()

    def _refuse(self, stream: int, error: CorralError) -> None:
        """End a waiting call with this error."""
        if stream not in self._streams.flags or self._held is None:
            return
        self._streams.ended(stream)
        self._deadlines.pop(stream, None)
        self._held.leave_out(stream)
        self._return_window(self._held)
        self._own(call_failure(stream, 0, error))
        if not self._streams.calls and not self._tasks and self.state is State.HELD:
            self._end(None)

    def _control(self, stream: int, request: Request) -> None:
        """Answer a request that is not passed to a backend."""
        try:
            answer = self._model.answer(request)
        except CorralError as error:
            self._own(call_failure(stream, 0, error))
            return
        if isinstance(answer, bytes):
            self._own(reply(stream, answer))
        else:
            self._tasks[stream] = self._model.spawn(self._answer(stream, answer))

    async def _answer(self, stream: int, answer: Coroutine[Any, Any, bytes]) -> None:
        try:
            self._own(reply(stream, await answer))
        except CorralError as error:
            self._own(call_failure(stream, 0, error))
        finally:
            self._tasks.pop(stream, None)

    # The end

    def _end(self, cause: CorralError | None, code: int = NO_ERROR) -> None:
        """End the open calls with `cause`, send a GOAWAY, and wait for the client to close."""
        if self.state in (State.ENDING, State.CLOSED):
            return
        whole = self._replies.at_boundary
        # The client may retry streams above this one: most libraries do so on their own.
        last = self._streams.last
        if self.state is State.SPLICED and code == NO_ERROR:
            last = min(last, self._reached, self._streams.limit)
        held, self.state = self._held, State.ENDING
        self._held = self._frames = None
        if self._timer is not None:
            self._timer.cancel()
        if self._backend is not None:
            self._backend.close()
            self._backend = None
        calls, self._calls = self._calls, None
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._let_go()
        if not whole:
            _release(calls)
            self.close()
            return
        frames = bytearray(self._pending)
        if held is not None:
            frames += held.to_client
        error = cause or ModelUnloadedError(f"model {self._model.name!r} was unloaded")
        for stream, flags in self._streams.flags.items():
            if stream <= last:
                frames += call_failure(stream, flags, error)
        frames += goaway(last, code)
        self._streams.flags.clear()
        self._streams.calls = 0
        self._pending = b""
        self._timer = self._loop.call_later(self._model.linger_timeout, self.close)
        self._client.resume()
        self._write(bytes(frames))
        _release(calls)

    def _own(self, frames: bytes) -> None:
        """Send the endpoint's own frames to the client, between two of the backend's."""
        if self.state in (State.ENDING, State.CLOSED):
            return
        if self.state is State.SPLICED and not self._replies.at_boundary:
            self._pending += frames
        else:
            self._write(frames)
        if self._client.waiting + len(self._pending) > _UNREAD_BYTES:
            self.close()

    def _write(self, frames: bytes) -> None:
        try:
            self._client.send(frames)
        except OSError:
            self.close()

    def close(self) -> None:
        """Close both sides at once; its calls no longer count. Idempotent."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        if self._timer is not None:
            self._timer.cancel()
        self._client.close()
        if self._backend is not None:
            self._backend.close()
        self._held = self._frames = None
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._let_go()
        calls, self._calls = self._calls, None
        self._streams.flags.clear()
        self._streams.calls = 0
        _release(calls)
        self._model.closed(self)


def _release(calls: CountedCalls | None) -> None:
    if calls is not None:
        calls.release()
