"""One client's connection to a model endpoint, from its first byte to its last.

    HELD ── a call has its lease ──> CONNECTING ──> SPLICED ── unload, crash ──> ENDING ──> closed
      └─────────────── no load, or nothing more to answer ───────────────────────↑

HELD: no backend; the client is answered as a living server answers. SPLICED: bytes pass, frame headers are
read. ENDING: the client was told to go elsewhere (GOAWAY), and what it still sends is read and forgotten
until it closes: to close first would lose what it wrote before it knew.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Coroutine
from contextlib import suppress
from enum import Enum
from typing import Any

from services.common.errors import CorralError, ModelUnloadedError, ServiceUnreachableError
from services.common.logs import get_logger

from .admission import Caller
from .backend_dial import dial, dial_now
from .backend_frames import BackendFrames, Greeting
from .call_failures import call_failure
from .client_frames import ClientFrames
from .counted_calls import CountedCalls
from .endpoint_requests import HeadersError, Kind, Request, RequestHeaders
from .header_block import BrokenFramesError
from .held_frames import HeldFrames
from .http2 import (
    COMPRESSION_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    SETTINGS,
    bearer,
    frame,
    goaway,
    reply,
    window_update,
)
from .instance import Instance, Lease
from .open_streams import PROBE, SENT, OpenStreams
from .raw_socket import READ, RawSocket
from .spliced_model import Model

_log = get_logger(__name__)

_KEPT_BYTES = 1024 * 1024
"""What is kept of a client whose model is being loaded; then it has to wait with the rest."""
_IDLE_BYTES = 64 * 1024
_IDLE_REQUESTS = 100
"""What may be kept of requests that were answered, before the client is asked to connect anew."""
_ALL = 2**31 - 1
_UNREAD_BYTES = 1024 * 1024
"""What may wait for a client that asks and does not read the answers; of a backend, one piece waits at most."""
_LAST_READS = 64
"""Pieces to take from a backend that has ended: more than fit into a socket."""


class State(Enum):
    """Where a connection stands."""

    HELD = 1
    CONNECTING = 2
    SPLICED = 3
    ENDING = 4
    CLOSED = 5


class Connection:
    """One client's connection."""

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
        """Greet the client, and read what it sends."""
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
        """Frames of our own that wait for the end of one of the backend's."""
        self._closing = False
        """The client was told to open no more streams."""
        self._probing = False
        """A probe waits for the backend, which is there."""
        self._reached = 0
        """The highest stream that the backend can have worked on; of none while it never said a word:
        a gRPC server begins with its SETTINGS, before it reads."""
        self._moved = 0.0
        """When the backend last sent something, or began to owe something; by the monotonic clock."""
        self._leases: list[Lease] = []
        """Of calls that have been waiting, until all is counted as one."""
        self._deadlines: dict[int, float | None] = {}
        """Of the calls that no backend has heard of yet, by stream and the monotonic clock."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """Waits for a lease, and answers that take time, by stream."""
        self._timer: asyncio.TimerHandle | None = None
        self.state = State.HELD
        self._timer = self._loop.call_later(model.handshake_timeout, self.close)
        with suppress(OSError):  # seen by whoever reads
            self._client.send(frame(SETTINGS, 0, 0))
        self._client.read(self._from_client)

    @property
    def calls(self) -> int:
        """Open calls, those that wait for the model included."""
        return self._streams.calls

    # From the client

    def _from_client(self) -> None:
        try:
            data = self._client.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        frames = self._frames
        try:
            if frames is not None:
                self._pass_on(frames, data)
            elif self._held is not None:
                self._held_back(self._held, data)
        except (HeadersError, BrokenFramesError) as error:
            code = COMPRESSION_ERROR if isinstance(error, HeadersError) else PROTOCOL_ERROR
            self._end(ServiceUnreachableError(str(error)), code)

    def _pass_on(self, frames: ClientFrames, data: bytes) -> None:
        calls, streams, backend = self._calls, self._streams, self._backend
        assert calls is not None
        before, last = streams.calls, streams.last
        on = frames.feed(data)
        finished = frames.finished
        if begun := streams.calls - before + finished:
            if not calls.open:
                self._moved = time.monotonic()
            calls.begin(begun)  # before the backend can know of it
        if backend is not None and on:
            try:
                sent = backend.send(on)
            except OSError:
                self._reached = min(self._reached, last)
                self._backend_gone()
                return
            if not sent:
                self._client.pause()
                backend.when_drained(self._client.resume)
        if finished:
            calls.end(finished)
            self._settle()
        if frames.returned:
            self._own(window_update(0, frames.returned))
            frames.returned = 0

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
                self._end(None)  # it connects anew, with nothing to be kept
        elif held.size > _KEPT_BYTES:
            self._client.pause()

    def _return_window(self, held: HeldFrames) -> None:
        if held.returned:
            returned, held.returned = held.returned, 0
            self._own(window_update(0, returned))

    # Before there is a backend

    def _opened(self, stream: int, request: Request) -> bool:
        """Take a call or a probe; whether it is for the backend."""
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
            # Who waited for the same has its lease in the same turn of the loop.
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
        """The client reset a stream of which the backend has not heard."""
        assert self._held is not None
        ended = self._streams.ended(stream)
        if ended and self._calls is not None:
            self._calls.end(ended)
        self._held.leave_out(stream)
        self._deadlines.pop(stream, None)
        if task := self._tasks.pop(stream, None):
            task.cancel()

    def _refuse(self, stream: int, error: CorralError) -> None:
        """Tell one call that waits that it cannot be made."""
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
        """Answer a request that no backend gets."""
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

    # To a backend

    def _attach(self, instance: Instance) -> None:
        """Count what is open as the instance's calls from now on, and connect to it."""
        self.state = State.CONNECTING
        calls = self._calls = self._model.count_calls(instance, self._stands_still)
        self._moved = time.monotonic()
        if self._streams.calls:
            calls.begin(self._streams.calls, counted=len(self._leases))
        self._let_go()
        tasks, self._tasks = self._tasks, {}
        for stream, task in tasks.items():
            if stream in self._streams.flags:
                task.cancel()  # one lease is enough for all that wait on this connection
            else:
                self._tasks[stream] = task
        calls.on_drain(self.drain)
        try:
            sock = dial_now(instance.address)
        except OSError as error:
            self._unreachable(instance, error)
            return
        if sock is not None:
            self._splice(instance, sock)
        else:
            self._tasks[0] = self._model.spawn(self._connect(instance))
        calls.on_cut(self._cut)

    async def _connect(self, instance: Instance) -> None:
        try:
            sock = await dial(instance.address, self._model.connect_timeout)
        except (OSError, TimeoutError, ValueError) as error:
            self._tasks.pop(0, None)
            self._unreachable(instance, error)
        else:
            self._tasks.pop(0, None)
            self._splice(instance, sock)

    def _unreachable(self, instance: Instance, error: Exception) -> None:
        if self.state is not State.CONNECTING:
            return
        lost = ServiceUnreachableError(
            f"the backend at {instance.address} cannot be reached:"
            f" {str(error) or type(error).__name__}",
            metadata={"model": instance.model, "backend": instance.backend.name},
        )
        if instance.backend.external:
            self._model.lost(instance, lost)
            self._end(lost)
        else:
            self._tasks[0] = self._model.spawn(self._find_out(instance, lost))

    async def _find_out(self, instance: Instance, lost: CorralError) -> None:
        """Hold the calls anew if the backend has ended, of which the loader may hear in a moment."""
        cause = await instance.cause(self._model.cause_timeout)
        if cause is None:
            self._tasks.pop(0, None)
            self._end(lost)
        else:
            self._hold_again(cause)

    def _hold_again(self, cause: CorralError) -> None:
        """The backend ended before it heard of any call: they wait for the next one."""
        if task := self._tasks.pop(0, None):
            task.cancel()
        calls, self._calls = self._calls, None
        self.state, self._closing = State.HELD, False
        for stream, flags in list(self._streams.flags.items()):
            if not flags & PROBE:
                self._await_lease(stream)
        if calls is not None:
            calls.release()
        for stream, flags in list(self._streams.flags.items()):
            if flags & PROBE:
                self._refuse(stream, cause)

    def _splice(self, instance: Instance, sock: socket.socket) -> None:
        held, self._held = self._held, None
        if self.state is not State.CONNECTING or held is None:
            sock.close()
            return
        self.state = State.SPLICED
        self._deadlines.clear()
        field = bearer(instance.token)
        backend = self._backend = RawSocket(sock, self._loop)
        self._headers.allow_any_table()
        self._greeting = Greeting(held.settings) if held.settings else None
        self._frames = ClientFrames(
            self._streams,
            self._headers,
            field,
            acks=held.acks,
            answered=held.incomplete(),
            control=self._control,
        )
        backend.read(self._from_backend)
        try:
            if backend.send(held.replay(field)):
                self._client.resume()
            else:
                self._client.pause()
                backend.when_drained(self._client.resume)
            if part := held.take_part():
                self._pass_on(self._frames, part)
        except OSError:
            self._backend_gone()
            return
        if self._closing:
            self._say_goodbye()

    # From the backend

    def _from_backend(self) -> None:
        assert self._backend is not None
        try:
            data = self._backend.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._backend_gone()
            return
        self._pass_back(data)

    def _pass_back(self, data: bytes) -> None:
        if self._greeting is not None:
            data = self._greeting.feed(data)
            if not self._greeting.acks:
                self._greeting = None
            if not data:
                return
        try:
            if not self._client.send(data) and self._backend is not None:
                self._backend.pause()
                self._client.when_drained(self._resume_backend)
        except OSError:
            self.close()
            return
        self._moved = time.monotonic()
        if not self._reached:
            self._reached = _ALL
        # Looked at when it is on its way: the client need not wait for that.
        ended = self._replies.feed(data)
        if ended and self._calls is not None:
            self._calls.end(ended)
        if self._closing or self._pending:
            self._settle()

    def _resume_backend(self) -> None:
        self._moved = time.monotonic()
        if self._backend is not None:
            self._backend.resume()

    def _stands_still(self) -> float:
        if self._client.full:
            return math.inf  # a slow client is no fault of the backend's
        owes = any(flags & (SENT | PROBE) == SENT for flags in self._streams.flags.values())
        return self._moved if owes else math.inf

    def _backend_gone(self) -> None:
        """The backend closed the connection; why is known in a moment, if it has ended."""
        if self.state is not State.SPLICED or self._timer is not None:
            return
        if self._backend is not None:
            self._backend.pause()
        self._client.pause()
        if not self._streams.flags:
            self._end(None)
            return
        self._timer = self._loop.call_later(self._model.cause_timeout, self._cause_unknown)

    def _cause_unknown(self) -> None:
        self._timer = None
        assert self._calls is not None
        instance = self._calls.instance
        error = ServiceUnreachableError(
            f"the backend at {instance.address} closed the connection",
            metadata={"model": instance.model, "backend": instance.backend.name},
        )
        if instance.backend.external:
            self._model.spawn(self._look_after(instance, error))
        self._end(error)

    async def _look_after(self, instance: Instance, error: CorralError) -> None:
        if not await instance.answers(self._model.cause_timeout):
            self._model.lost(instance, error)

    # The end

    def drain(self) -> None:
        """Tell the client to open no more streams here; end when the calls that are open have ended."""
        if self._closing or self.state in (State.ENDING, State.CLOSED):
            return
        if self.state is State.HELD:
            if not self._streams.calls and not self._tasks:
                self._end(None)
            return  # those that wait are told by whoever they wait for
        if self.state is State.CONNECTING and not self._streams.calls:
            self._end(None)
            return
        self._closing = True
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        if self._frames is not None:
            self._frames.close()
            self._own(goaway(self._streams.last))
            self._settle()

    def _settle(self) -> None:
        """Send what waited for the end of a frame, and end the connection if it was the last call's."""
        if self.state is not State.SPLICED or not self._replies.at_boundary:
            return
        if self._pending:
            pending, self._pending = self._pending, b""
            self._write(pending)
        if self._closing and not self._streams.calls:
            self._end(None)

    def _cut(self) -> None:
        """The instance has ended, or is being ended with its calls."""
        calls = self._calls
        if calls is None or self.state not in (State.CONNECTING, State.SPLICED):
            return
        if self.state is State.CONNECTING:
            self._hold_again(calls.instance.ended.result())
            return
        if self._backend is not None:
            for _ in range(_LAST_READS):  # what it still said counts
                try:
                    data = self._backend.recv(READ)
                except OSError:
                    break
                if not data:
                    break
                self._pass_back(data)
                if self.state is not State.SPLICED:
                    return
        self._end(calls.instance.ended.result())

    def _end(self, cause: CorralError | None, code: int = NO_ERROR) -> None:
        """Tell the open calls why they end, and the client to go elsewhere; wait until it does."""
        if self.state in (State.ENDING, State.CLOSED):
            return
        whole = self._replies.at_boundary
        # Above this, the client may send again what it sent: most libraries do so by themselves.
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
            self._release(calls)
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
        self._release(calls)

    def _release(self, calls: CountedCalls | None) -> None:
        if calls is not None:
            calls.release()

    def _own(self, frames: bytes) -> None:
        """Send frames of our own to the client, between two of the backend's."""
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
        """Close both sides at once; nothing of it counts any more. Idempotent."""
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
        self._release(calls)
        self._model.closed(self)
