"""The methods of the blocking client's stub: each call chooses its way when it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

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
        self.methods: dict[Any, Any] = {}


class Keeper(Protocol):
    """Knows which way a call takes."""

    gateway: Session

    def enter(self, *, asks: bool) -> Session | None:
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
        return _Streaming(self._keeper, "unary_stream", path, args, options)

    def stream_unary(self, path: str, *args: Any, **options: Any) -> Any:
        """Return a method of many requests."""
        return _StreamUnary(self._keeper, "stream_unary", path, args, options)

    def stream_stream(self, path: str, *args: Any, **options: Any) -> Any:
        """Return a method of many requests and responses."""
        return _Streaming(self._keeper, "stream_stream", path, args, options)


class Method:
    """One RPC, on whichever way."""

    def __init__(
        self, keeper: Keeper, kind: str, path: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        """Make it on each channel as the stub would."""
        self._keeper = keeper
        self._make: Callable[[grpc.Channel], Any] = lambda channel: getattr(channel, kind)(
            path, *args, **options
        )
        self._asks = reach.asks_for_lease(path)
        self._direct = reach.goes_direct(path)

    def _enter(self) -> Session | None:
        return self._keeper.enter(asks=self._asks) if self._direct else None

    def _on(self, session: Session) -> Any:
        # Two threads may make it at the same time; either is as good.
        made = session.methods.get(self)
        if made is None:
            made = session.methods[self] = self._make(session.channel)
        return made

    def _watched(self, metadata: Any, start: Callable[[Any, Any], Any]) -> Any:
        """Start a call that goes on after this returns."""
        session = self._enter()
        if session is None:
            return start(self._on(self._keeper.gateway), _with(metadata, self._keeper.gateway))
        try:
            call = start(self._on(session), _with(metadata, session))
            watched = call.add_callback(lambda: self._keeper.leave(session))
        except BaseException:
            self._keeper.leave(session)
            raise
        if not watched:  # it has ended already
            self._keeper.leave(session)
        return call


class _UnaryUnary(Method):
    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        session = self._enter()
        if session is not None:
            try:
                return self._on(session)(
                    request,
                    timeout,
                    _with(metadata, session),
                    credentials,
                    wait_for_ready,
                    compression,
                )
            except grpc.RpcError as error:
                if not reach.never_sent(error):
                    raise
                self._keeper.lost(session)
            finally:
                self._keeper.leave(session)
        gateway = self._keeper.gateway
        return self._on(gateway)(
            request, timeout, _with(metadata, gateway), credentials, wait_for_ready, compression
        )

    def with_call(
        self, request: Any, timeout: Any = None, metadata: Any = None, *more: Any, **named: Any
    ) -> Any:
        session = self._enter()
        if session is not None:
            try:
                return self._on(session).with_call(
                    request, timeout, _with(metadata, session), *more, **named
                )
            except grpc.RpcError as error:
                if not reach.never_sent(error):
                    raise
                self._keeper.lost(session)
            finally:
                self._keeper.leave(session)
        gateway = self._keeper.gateway
        return self._on(gateway).with_call(
            request, timeout, _with(metadata, gateway), *more, **named
        )

    def future(
        self, request: Any, timeout: Any = None, metadata: Any = None, *more: Any, **named: Any
    ) -> Any:
        return self._watched(
            metadata, lambda on, own: on.future(request, timeout, own, *more, **named)
        )


class _StreamUnary(Method):
    def __call__(
        self, requests: Any, timeout: Any = None, metadata: Any = None, *more: Any, **named: Any
    ) -> Any:
        return self.future(requests, timeout, metadata, *more, **named).result()

    def with_call(
        self, requests: Any, timeout: Any = None, metadata: Any = None, *more: Any, **named: Any
    ) -> Any:
        call = self.future(requests, timeout, metadata, *more, **named)
        return call.result(), call

    def future(
        self, requests: Any, timeout: Any = None, metadata: Any = None, *more: Any, **named: Any
    ) -> Any:
        return self._watched(
            metadata, lambda on, own: on.future(requests, timeout, own, *more, **named)
        )


class _Streaming(Method):
    def __call__(
        self, requests: Any, timeout: Any = None, metadata: Any = None, *more: Any, **named: Any
    ) -> Any:
        return self._watched(metadata, lambda on, own: on(requests, timeout, own, *more, **named))


def _with(metadata: Any, session: Session) -> reach.Metadata:
    return session.metadata if metadata is None else reach.joined(metadata, session.metadata)
