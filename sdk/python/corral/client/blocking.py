"""The client for threads."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc

from corral.backend import backend_pb2_grpc
from corral.loader.v1 import loader_pb2, loader_pb2_grpc

from . import reach
from .blocking_calls import Router, Session
from .keeping import Keeping, advice


def connect(
    model: str,
    loader: str = reach.DEFAULT_LOADER,
    *,
    direct: bool = True,
    idle: float = reach.IDLE,
    max_message_size: int = reach.MAX_MESSAGE_SIZE,
) -> Model:
    """Return a client of one model; nothing is opened before the first call.

    `loader` is `host:port` or `unix:/path`. With `direct=False` every call goes through the loader. A lease is
    released after `idle` seconds without a call. `max_message_size` is in bytes, for each direction.
    """
    return Model(model, loader, direct=direct, idle=idle, max_message_size=max_message_size)


class Model(backend_pb2_grpc.BackendStub):
    """A stub of `backend.Backend` for one model. Safe for threads; use it as a context manager, or close it.

    Calls take what the generated stub's calls take, and fail as those do.
    """

    def __init__(
        self, model: str, loader: str, *, direct: bool, idle: float, max_message_size: int
    ) -> None:
        """See connect."""
        self._keeper = _Keeper(model, loader, direct, idle, max_message_size)
        super().__init__(Router(self._keeper))  # type: ignore[call-arg]

    @property
    def direct(self) -> bool:
        """Whether a call made now goes straight to the backend."""
        return self._keeper.rules.current is not None

    def ready(self, timeout: float | None = None) -> bool:
        """Load the model if needed, and wait for the direct path to it; return whether there is one.

        If not, the next call goes through the loader, and its error has the reason. `timeout` is in seconds.
        """
        return self._keeper.ready(timeout)

    def close(self) -> None:
        """End running calls, give the lease back and close all connections. Idempotent."""
        self._keeper.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


class _Keeper:
    """Keeps a lease while it is used; two threads look after each as long as there is one."""

    def __init__(
        self, model: str, loader: str, direct: bool, idle: float, max_message_size: int
    ) -> None:
        self._loader = loader
        self._direct = direct
        self._request = loader_pb2.HoldModelRequest(name=model)
        self._options = reach.channel_options(max_message_size)
        self.gateway = Session(
            grpc.insecure_channel(reach.target(loader), self._options), reach.to_model(model)
        )
        # Not the gateway's channel: a callback of a call there may close this client, which waits for
        # the lease's end, and gRPC runs all callbacks of a channel in one thread.
        self._control_channel = grpc.insecure_channel(reach.target(loader), self._options)
        self._control: Any = loader_pb2_grpc.LoaderServiceStub(self._control_channel)
        self.rules = Keeping(idle=idle, pause=reach.PAUSE)
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._holds: set[Any] = set()

    def enter(self, *, asks: bool, timeout: float | None) -> Session | None:
        """Count a call on the lease, None to go through the loader; one that `asks` waits a moment for it.

        A call that has a timeout waits for a part of that at most.
        """
        rules = self.rules
        with self._changed:
            lease = rules.enter()
            if lease is None and asks and self._direct:
                self._ask()
                if rules.asking_since is not None:
                    left = rules.asking_since + reach.PATIENCE - time.monotonic()
                    if timeout is not None:
                        left = min(left, timeout * reach.PATIENCE_SHARE)
                    self._changed.wait_for(lambda: rules.asking_since is None, left)
                    lease = rules.enter()
        return lease  # type: ignore[return-value]

    def leave(self, session: Session) -> None:
        """Count a call as ended."""
        with self._changed:
            if self.rules.leave(session):
                self._changed.notify_all()

    def lost(self, session: Session) -> None:
        """Nobody listens at the lease's address."""
        with self._changed:
            self.rules.retire(session)
            self._changed.notify_all()

    def ready(self, timeout: float | None) -> bool:
        """See Model."""
        with self._changed:
            if self._direct and self.rules.current is None:
                self._ask()
                self._changed.wait_for(lambda: self.rules.asking_since is None, timeout)
            return self.rules.current is not None

    def close(self) -> None:
        """See Model."""
        with self._changed:
            self.rules.close()
            holds, threads = list(self._holds), list(self._threads)
            self._changed.notify_all()
        for hold in holds:
            hold.cancel()
        for thread in threads:
            thread.join()
        self._control_channel.close()
        self.gateway.channel.close()

    def _ask(self) -> None:
        if self.rules.ask():
            self._threads = {each for each in self._threads if each.is_alive()}
            self._threads.add(self._start(self._keep, "hold"))

    def _start(self, work: Callable[..., None], what: str, *args: Any) -> threading.Thread:
        name = f"{what} {self._request.name}"
        thread = threading.Thread(target=work, args=args, name=name, daemon=True)
        thread.start()
        return thread

    def _keep(self) -> None:
        """Ask for a lease, and keep it as long as it is used."""
        hold = self._control.HoldModel(self._request)
        with self._changed:
            self._holds.add(hold)
            if self.rules.closed:
                hold.cancel()
        try:
            session = self._resolve(hold)
            if session is not None:
                listener = self._start(self._listen, "listen to", session, hold)
                self._serve(session)
                hold.cancel()
                listener.join()
        finally:
            hold.cancel()
            with self._changed:
                self._holds.discard(hold)

    def _resolve(self, hold: Any) -> Session | None:
        """Wait for the lease, and connect; None if that came to nothing."""
        session, for_long = None, False
        try:
            found = next(hold).resolution
            for_long = not reach.reachable(self._loader, found.address)
            if not for_long:
                session = self._connect(found)
        except StopIteration:  # the loader stops
            pass
        except grpc.RpcError as error:
            for_long = error.code() is grpc.StatusCode.UNIMPLEMENTED
        finally:
            with self._changed:
                if session is None:
                    self.rules.refused(for_long=for_long)
                else:
                    self.rules.granted(session)
                    self.rules.advised(session, advice(found.advice))
                self._changed.notify_all()
        return session

    def _connect(self, found: loader_pb2.ResolveModelResponse) -> Session | None:
        if not _listens(found.address, reach.CONNECT_TIMEOUT):
            return None
        channel = grpc.insecure_channel(reach.target(found.address), self._options)
        session = Session(channel, reach.to_backend(found.token))
        session.add(self.gateway.methods)
        return session

    def _serve(self, session: Session) -> None:
        """Return when no call needs the lease any more."""
        with self._changed:
            while not session.leaving:
                self._changed.wait(self.rules.patience(session))
            self._changed.wait_for(lambda: not session.active or self.rules.closed)
        session.channel.close()

    def _listen(self, session: Session, hold: Any) -> None:
        """Follow the loader's advice until the stream ends, because the instance or the loader is gone."""
        try:
            for message in hold:
                with self._changed:
                    self.rules.advised(session, advice(message.resolution.advice))
                    self._changed.notify_all()
        except grpc.RpcError:
            pass
        with self._changed:
            self.rules.retire(session)
            self._changed.notify_all()


def _listens(address: str, timeout: float) -> bool:
    """Whether a server listens there.

    Asked of the system: a gRPC channel that was watched for its state takes 0.2 s to be closed.
    """
    try:
        if address.startswith("unix:"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout)
                connection.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except (OSError, ValueError):
        return False
    return True
