"""The methods of the blocking client's stub: each call chooses its way when it is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import grpc

from . import reach
from .keeping import Lease


class Session(Lease):
    """A lease with its connection."""

    __slots__ = ("channel", "metadata", "methods")

    def __init__(self, channel: grpc.Channel, metadata: reach.Metadata) -> None:
        """Make no method yet."""
        super().__init__()
        self.channel = channel
        self.metadata = metadata
        self.methods: dict[Method, Any] = {}

    def add(self, methods: Iterable[Method]) -> None:
        """Make methods on the channel, which is open: on one that is closed, that ends the process (grpcio 1.85)."""
        self.methods.update((each, each.make(self.channel)) for each in methods)


class Keeper(Protocol):
    """Knows which way a call takes."""

    gateway: Session

    def enter(self, *, asks: bool, timeout: float | None) -> Session | None:
        """Count a call on the lease, None to go through the loader; one that `asks` waits a moment for it."""
        ...

    def leave(self, session: Session) -> None:
        """Count a call as ended."""
        ...

    def lost(self, session: Session) -> None:
        """Nobody listens at the lease's address."""
        ...


class Router:
    """What the generated stub takes for a channel: makes methods that choose their way with each call."""

    def __init__(self, keeper: Keeper) -> None:
        """Ask the keeper for the way."""
        self._keeper = keeper

    def unary_unary(self, path: str, *args: Any, **options: Any) -> Any:
        """Return a method of one request and one response."""
        return _UnaryUnary(self._keeper, "unary_unary", path, args, options)

    def unary_stream(self, path: str, *args: Any, **options: Any) -> Any:
        """Return a method of many responses."""
        return _UnaryStream(self._keeper, "unary_stream", path, args, options)

    def stream_unary(self, path: str, *args: Any, **options: Any) -> Any:
        """Return a method of many requests."""
        return _StreamUnary(self._keeper, "stream_unary", path, args, options)

    def stream_stream(self, path: str, *args: Any, **options: Any) -> Any:
        """Return a method of many requests and responses."""
        return _StreamStream(self._keeper, "stream_stream", path, args, options)


class Method:
    """One RPC, on whichever way."""

    def __init__(
        self, keeper: Keeper, kind: str, path: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        """Make it on each channel as the stub would, on the gateway's at once."""
        self._keeper = keeper
        self.make: Callable[[grpc.Channel], Any] = lambda channel: getattr(channel, kind)(
            path, *args, **options
        )
        self._asks = reach.asks_for_lease(path)
        self._direct = reach.goes_direct(path)
        keeper.gateway.add([self])

    def _enter(self, timeout: float | None) -> tuple[Session | None, float | None]:
        """Return the lease, and what is left of the timeout."""
        if not self._direct:
            return None, timeout
        began = time.monotonic()
        session = self._keeper.enter(asks=self._asks, timeout=timeout)
        return session, timeout if timeout is None else timeout - (time.monotonic() - began)

    def _finish(self, how: str, request: Any, asked: _Asked) -> Any:
        """Make a call that is over when this returns; one that found no server goes on to the loader."""
        session, timeout = self._enter(asked.timeout)
        if session is not None:
            try:
                return getattr(session.methods[self], how)(
                    request,
                    timeout,
                    _with(asked.metadata, session),
                    asked.credentials,
                    # Nobody comes back at a backend's address: the loader is to wait for.
                    False,
                    asked.compression,
                )
            except grpc.RpcError as error:
                if not reach.never_sent(error):
                    raise
                self._keeper.lost(session)
            finally:
                self._keeper.leave(session)
        return self._through(how, request, timeout, asked)

    def _start(self, how: str, request: Any, asked: _Asked) -> Any:
        """Start a call that goes on after this returns."""
        session, timeout = self._enter(asked.timeout)
        if session is None:
            return self._through(how, request, timeout, asked)
        try:
            call = getattr(session.methods[self], how)(
                request,
                timeout,
                _with(asked.metadata, session),
                asked.credentials,
                False,
                asked.compression,
            )
            watched = call.add_callback(lambda: self._keeper.leave(session))
        except BaseException:
            self._keeper.leave(session)
            raise
        if not watched:  # it has ended already
            self._keeper.leave(session)
        return call

    def _through(self, how: str, request: Any, timeout: float | None, asked: _Asked) -> Any:
        gateway = self._keeper.gateway
        return getattr(gateway.methods[self], how)(
            request,
            timeout,
            _with(asked.metadata, gateway),
            asked.credentials,
            asked.wait_for_ready,
            asked.compression,
        )


class _Asked(NamedTuple):
    """The options of a call, in gRPC's order."""

    timeout: float | None = None
    metadata: Any = None
    credentials: Any = None
    wait_for_ready: bool | None = None
    compression: Any = None


class _UnaryUnary(Method):
    def __call__(self, request: Any, *asked: Any, **named: Any) -> Any:
        return self._finish("__call__", request, _Asked(*asked, **named))

    def with_call(self, request: Any, *asked: Any, **named: Any) -> Any:
        return self._finish("with_call", request, _Asked(*asked, **named))

    def future(self, request: Any, *asked: Any, **named: Any) -> Any:
        return self._start("future", request, _Asked(*asked, **named))


class _UnaryStream(Method):
    def __call__(self, request: Any, *asked: Any, **named: Any) -> Any:
        return self._start("__call__", request, _Asked(*asked, **named))


class _StreamUnary(Method):
    def __call__(self, request_iterator: Any, *asked: Any, **named: Any) -> Any:
        return self.future(request_iterator, *asked, **named).result()

    def with_call(self, request_iterator: Any, *asked: Any, **named: Any) -> Any:
        call = self.future(request_iterator, *asked, **named)
        return call.result(), call

    def future(self, request_iterator: Any, *asked: Any, **named: Any) -> Any:
        return self._start("future", request_iterator, _Asked(*asked, **named))


class _StreamStream(Method):
    def __call__(self, request_iterator: Any, *asked: Any, **named: Any) -> Any:
        return self._start("__call__", request_iterator, _Asked(*asked, **named))


def _with(metadata: Any, session: Session) -> reach.Metadata:
    return session.metadata if metadata is None else reach.joined(metadata, session.metadata)
