"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc import aio

from corral.backend import backend_pb2_grpc
from corral.loader.v1 import loader_pb2, loader_pb2_grpc

from . import reach
from .keeping import Keeping, Lease, advice

if TYPE_CHECKING:
    Stub = backend_pb2_grpc.BackendAsyncStub
else:
    Stub = backend_pb2_grpc.BackendStub


def connect(
    model: str,
    loader: str = reach.DEFAULT_LOADER,
    *,
    direct: bool = True,
    idle: float = reach.IDLE,
    max_message_size: int = reach.MAX_MESSAGE_SIZE,
) -> Model:
    """Return a client of one model, for the running loop; nothing is opened before the first call.

    The arguments are those of `corral.client.connect`.
    """
    return Model(model, loader, direct=direct, idle=idle, max_message_size=max_message_size)


class Model(Stub):
    """A stub of `backend.Backend` for one model. Use it as an async context manager, or close it.

    Calls take what the generated stub's calls take, and fail as those do. They never wait before they begin:
    the first ones go through the loader, until there is a lease. `await model.ready()` before them to go
    direct from the first one on.
    """

    def __init__(
        self, model: str, loader: str, *, direct: bool, idle: float, max_message_size: int
    ) -> None:
        """See connect."""
        self._keeper = _Keeper(model, loader, direct, idle, max_message_size)
        super().__init__(_Router(self._keeper))  # type: ignore[arg-type]

    @property
    def direct(self) -> bool:
        """Whether a call made now goes straight to the backend."""
        return self._keeper.rules.current is not None

    async def ready(self, timeout: float | None = None) -> bool:
        """Load the model if needed, and wait for the direct path to it; return whether there is one.

        If not, the next call goes through the loader, and its error has the reason. `timeout` is in seconds.
        """
        return await self._keeper.ready(timeout)

    async def cause(self, timeout: float) -> grpc.RpcError | None:
        """Return why the instance of the calls that have just failed ended, as reported by the loader.

        Waits up to `timeout` seconds for that; None if it still runs. Errors of calls through the loader have it.
        """
        return await self._keeper.cause(timeout)

    async def close(self) -> None:
        """End running calls, give the lease back and close all connections. Idempotent."""
        await self._keeper.close()

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()


class _Session(Lease):
    """A lease with its connection."""

    __slots__ = ("_own", "changed", "channel", "ended", "left", "metadata", "methods")

    def __init__(
        self,
        channel: aio.Channel,
        metadata: reach.Metadata,
        left: Callable[[_Session], None],
    ) -> None:
        """`left` is called with the session when a call on it has ended."""
        super().__init__()
        self.channel = channel
        self._own = metadata
        self.metadata = aio.Metadata(*metadata)
        self.left: Callable[[Any], None] = lambda _: left(self)
        """What is called when a call has ended."""
        self.methods: dict[_Method, Any] = {}
        self.changed = asyncio.Event()
        self.ended: asyncio.Future[grpc.RpcError | None] = (
            asyncio.get_running_loop().create_future()
        )
        """Set when the loader ends the lease, to why."""

    def joined(self, metadata: Any) -> aio.Metadata:
        """Return a caller's metadata with ours."""
        return aio.Metadata(*reach.joined(metadata, self._own))


class _Keeper:
    """Keeps a lease while it is used; a task looks after it as long as there is one."""

    def __init__(
        self, model: str, loader: str, direct: bool, idle: float, max_message_size: int
    ) -> None:
        self._loader = loader
        self._direct = direct
        self._request = loader_pb2.HoldModelRequest(name=model)
        self._options = reach.channel_options(max_message_size)
        self.gateway = _Session(
            aio.insecure_channel(reach.target(loader), self._options),
            reach.to_model(model),
            self.leave,
        )
        self._control: Any = loader_pb2_grpc.LoaderServiceStub(self.gateway.channel)
        self.rules = Keeping(idle=idle, pause=reach.PAUSE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._settled = asyncio.Event()
        self._last: _Session | None = None

    def enter(self, *, asks: bool = True) -> _Session | None:
        """Return the lease to call on, None for the loader."""
        lease = self.rules.enter()
        if lease is None and asks and self._direct:
            self._ask()
        return lease  # type: ignore[return-value]

    def leave(self, session: _Session) -> None:
        if self.rules.leave(session):
            session.changed.set()

    async def ready(self, timeout: float | None) -> bool:
        if self._direct and self.rules.current is None:
            self._ask()
            if self.rules.asking_since is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await self._settled.wait()
        return self.rules.current is not None

    async def cause(self, timeout: float) -> grpc.RpcError | None:
        session = self._last
        if session is None:
            return None
        await asyncio.wait([session.ended], timeout=timeout)
        return session.ended.result() if session.ended.done() else None

    async def close(self) -> None:
        self.rules.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.gateway.channel.close()

    def _ask(self) -> None:
        if self.rules.ask():
            self._settled.clear()
            loop = asyncio.get_running_loop()
            task = loop.create_task(self._keep(), name=f"hold {self._request.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _keep(self) -> None:
        """Ask for a lease, and keep it as long as it is used."""
        hold = self._control.HoldModel(self._request)
        session = None
        try:
            session = await self._resolve(hold)
            if session is not None:
                await self._serve(session, hold)
        finally:
            hold.cancel()
            if session is not None:
                self.rules.retire(session)
                await session.channel.close()

    async def _resolve(self, hold: Any) -> _Session | None:
        """Wait for the lease, and connect; None if that came to nothing."""
        session, for_long = None, False
        try:
            first = await hold.read()
            if first is not aio.EOF:  # else the loader stops
                for_long = not reach.reachable(self._loader, first.resolution.address)
                if not for_long:
                    session = await self._connect(first.resolution)
        except aio.AioRpcError as error:
            for_long = error.code() is grpc.StatusCode.UNIMPLEMENTED
        finally:
            if session is None:
                self.rules.refused(for_long=for_long)
            else:
                self._last = session
                self.rules.granted(session)
                self.rules.advised(session, advice(first.resolution.advice))
            self._settled.set()
        return session

    async def _serve(self, session: _Session, hold: Any) -> None:
        """Return when no call needs the lease any more."""
        listening = asyncio.ensure_future(self._listen(session, hold))
        try:
            while not session.leaving:
                session.changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.rules.patience(session)):
                        await session.changed.wait()
            while session.active:
                session.changed.clear()
                await session.changed.wait()
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def _connect(self, found: loader_pb2.ResolveModelResponse) -> _Session | None:
        channel = aio.insecure_channel(reach.target(found.address), self._options)
        connected = False
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(reach.CONNECT_TIMEOUT):
                    connected = await _connects(channel)
        finally:
            if not connected:
                await channel.close()
        return _Session(channel, reach.to_backend(found.token), self.leave) if connected else None

    async def _listen(self, session: _Session, hold: Any) -> None:
        """Follow the loader's advice until the stream ends, because the instance or the loader is gone."""
        why = None
        try:
            while (message := await hold.read()) is not aio.EOF:
                self.rules.advised(session, advice(message.resolution.advice))
                session.changed.set()
        except grpc.RpcError as error:
            why = error
        finally:
            session.ended.set_result(why)
            self.rules.retire(session)
            session.changed.set()


async def _connects(channel: aio.Channel) -> bool:
    """Whether the first try to connect succeeds."""
    while True:
        state = channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return True
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return False
        await channel.wait_for_state_change(state)


class _Router:
    """What the generated stub takes for a channel: makes methods that choose their way with each call."""

    def __init__(self, keeper: _Keeper) -> None:
        self._keeper = keeper

    def unary_unary(self, path: str, *args: Any, **options: Any) -> Any:
        return _UnaryUnary(self._keeper, "unary_unary", path, args, options)

    def unary_stream(self, path: str, *args: Any, **options: Any) -> Any:
        return _UnaryStream(self._keeper, "unary_stream", path, args, options)

    def stream_unary(self, path: str, *args: Any, **options: Any) -> Any:
        return _StreamUnary(self._keeper, "stream_unary", path, args, options)

    def stream_stream(self, path: str, *args: Any, **options: Any) -> Any:
        return _StreamStream(self._keeper, "stream_stream", path, args, options)


class _Method:
    """One RPC, on whichever way."""

    def __init__(
        self, keeper: _Keeper, kind: str, path: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._keeper = keeper
        self._make: Callable[[aio.Channel], Any] = lambda channel: getattr(channel, kind)(
            path, *args, **options
        )
        self._asks = reach.asks_for_lease(path)
        self._direct = reach.goes_direct(path)

    def _call(
        self,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: Any,
        wait_for_ready: bool | None,
        compression: Any,
    ) -> Any:
        # Every microsecond here is one of each call's: it is written out, and measured (benchmarks/sdk.py).
        keeper = self._keeper
        session = keeper.enter(asks=self._asks) if self._direct else None
        if session is None:
            on = keeper.gateway
        else:
            on = session
            # No other backend ever uses the same address: waiting would be in vain.
            wait_for_ready = False
        try:
            method = on.methods.get(self)
            if method is None:
                if (
                    keeper.rules.closed
                ):  # grpcio 1.85 ends the process for a new method on a closed channel
                    raise aio.UsageError("Channel is closed.")
                method = on.methods[self] = self._make(on.channel)
            call = method(
                request,
                timeout=timeout,
                metadata=on.metadata if metadata is None else on.joined(metadata),
                credentials=credentials,
                wait_for_ready=wait_for_ready,
                compression=compression,
            )
        except BaseException:
            if session is not None:
                keeper.leave(session)
            raise
        if session is not None:
            call.add_done_callback(session.left)
        return call


class _UnaryUnary(_Method, aio.UnaryUnaryMultiCallable[Any, Any]):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        return self._call(request, timeout, metadata, credentials, wait_for_ready, compression)


class _UnaryStream(_Method, aio.UnaryStreamMultiCallable[Any, Any]):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        return self._call(request, timeout, metadata, credentials, wait_for_ready, compression)


class _StreamUnary(_Method, aio.StreamUnaryMultiCallable[Any, Any]):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        return self._call(
            request_iterator, timeout, metadata, credentials, wait_for_ready, compression
        )


class _StreamStream(_Method, aio.StreamStreamMultiCallable[Any, Any]):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        return self._call(
            request_iterator, timeout, metadata, credentials, wait_for_ready, compression
        )
