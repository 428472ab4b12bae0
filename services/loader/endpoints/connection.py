"""One client's connection to a model endpoint, from its first byte to its last.

    HELD ── a call has its lease ──> CONNECTING ──> SPLICED ── unload, crash ──> ENDING ──> closed
      └─────────────── no load, or nothing more to answer ───────────────────────↑

HELD: no backend; the endpoint answers like a running server. SPLICED: bytes pass through, frame
headers are read. ENDING: a GOAWAY was sent, and the client's bytes are read and dropped until it
closes: closing first would lose the frames that the client sent before it got the GOAWAY.
"""

from __future__ import annotations

import math
import socket
import time

from services.common.errors import CorralError, ServiceUnreachableError
from services.loader.instances.instance import Instance

from .backend_frames import Greeting
from .client_frames import ClientFrames
from .dial import dial, dial_now
from .header_block import BrokenFramesError
from .held import HeldConnection, State
from .http2 import COMPRESSION_ERROR, PROTOCOL_ERROR, bearer, goaway
from .raw_socket import READ, RawSocket
from .request_headers import HeadersError
from .streams import PROBE, SENT

_ALL = 2**31 - 1
_LAST_READS = 64
"""Reads from a backend that has ended: more than a socket buffer holds."""


class Connection(HeldConnection):
    """One client's connection."""

    __slots__ = ()

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
            calls.begin(begun)  # before the backend gets it
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
        if frames.to_client:
            self._own(bytes(frames.to_client))
            frames.to_client.clear()

    # To a backend

    def _attach(self, instance: Instance) -> None:
        """Count the open calls as the instance's from now on, and connect to it."""
        self.state = State.CONNECTING
        calls = self._calls = self._model.count_calls(instance, self._stands_still)
        self._moved = time.monotonic()
        if self._streams.calls:
            calls.begin(self._streams.calls, counted=len(self._leases))
        self._let_go()
        tasks, self._tasks = self._tasks, {}
        for stream, task in tasks.items():
            if stream in self._streams.flags:
                task.cancel()  # one lease serves all waiting calls of this connection
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
        """Hold the calls again if the backend ended; the loader may report that a moment later."""
        cause = await instance.wait_ended(self._model.cause_timeout)
        if cause is None:
            self._tasks.pop(0, None)
            self._end(lost)
        else:
            self._hold_again(cause)

    def _hold_again(self, cause: CorralError) -> None:
        """Called when the backend ended before it got any call: the calls wait for the next one."""
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
        # Parsed after sending, so that the client does not wait for it.
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
            return math.inf  # a slow client is not the backend's fault
        owes = any(flags & (SENT | PROBE) == SENT for flags in self._streams.flags.values())
        return self._moved if owes else math.inf

    def _backend_gone(self) -> None:
        """Called when the backend closed the connection; if it ended, the cause follows soon."""
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
        """Send a GOAWAY, and end the connection when its open calls have ended."""
        if self._closing or self.state in (State.ENDING, State.CLOSED):
            return
        if self.state is State.HELD:
            if not self._streams.calls and not self._tasks:
                self._end(None)
            return  # waiting calls get the error from the lease they wait for
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
        """Send frames held until a frame's end; end a draining connection after its last call."""
        if self.state is not State.SPLICED or not self._replies.at_boundary:
            return
        if self._pending:
            pending, self._pending = self._pending, b""
            self._write(pending)
        if self._closing and not self._streams.calls:
            self._end(None)

    def _cut(self) -> None:
        """Called when the instance has ended, or is being stopped together with its calls."""
        calls = self._calls
        if calls is None or self.state not in (State.CONNECTING, State.SPLICED):
            return
        if self.state is State.CONNECTING:
            self._hold_again(calls.instance.ended.result())
            return
        if self._backend is not None:
            for _ in range(_LAST_READS):  # the backend's last bytes count
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
