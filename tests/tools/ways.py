"""The routes to a backend, for sync and asyncio clients: all make the same calls the same way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from importlib.util import find_spec
from typing import Any, Self, TypeVar

import grpc

from tests.tools.outcomes import (
    TIMEOUT,
    Metadata,
    Outcome,
    Step,
    kind_of,
    method_of,
    outcome,
    outcome_of,
    steps,
)

T = TypeVar("T")
Run = Callable[[Awaitable[Any]], Any]

CONTROL = frozenset({"LoadModel", "Free"})
"""Methods that a loader does not pass on: its models are shared."""

_LOCAL = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1024**2),
)
"""A separate connection with fixed windows, so that messages do not pile up in the client."""
_LARGEST = "grpc.max_receive_message_length"
_UNLIMITED = ((_LARGEST, -1), ("grpc.max_send_message_length", -1))


class Way:
    """A server that is a backend, or proxies one."""

    def __init__(
        self,
        name: str,
        address: str,
        run: Run,
        *,
        metadata: Metadata = (),
        refuses: frozenset[str] = frozenset(),
    ) -> None:
        """`run` runs coroutines; `metadata` is sent with each call."""
        self.name = name
        self.address = address
        self.run = run
        self.metadata = tuple(metadata)
        self.refuses = refuses
        self.channel = self.open(*_UNLIMITED)
        self.aio = run(self._open_aio())

    def __repr__(self) -> str:
        return self.name

    def close(self) -> None:
        self.channel.close()
        self.run(self.aio.close())

    def open(self, *options: tuple[str, Any]) -> Any:
        """Return a new channel."""
        return grpc.insecure_channel(self.address, options=[*_LOCAL, *options])

    async def _open_aio(self) -> Any:
        return grpc.aio.insecure_channel(self.address, options=[*_LOCAL, *_UNLIMITED])

    def start(
        self,
        name: str,
        requests: Any,
        *,
        metadata: Metadata = (),
        channel: Any = None,
        kind: str = "",
        timeout: float | None = TIMEOUT,
        **more: Any,
    ) -> Any:
        """Start a call of the sync client; one with a single answer is a future."""
        kind = kind or kind_of(name)
        method = method_of(channel or self.channel, name, kind)
        begin = method if kind.endswith("stream") else method.future
        return begin(requests, timeout=timeout, metadata=(*self.metadata, *metadata), **more)

    def ask(self, name: str, requests: Sequence[bytes], *told: Step, **more: Any) -> Outcome:
        """Make a call with the backend's steps, `told`, and return its outcome."""
        metadata = (*more.pop("metadata", ()), *(steps(*told) if told else ()))
        kind = more.get("kind") or kind_of(name)
        given = iter(requests) if kind.startswith("stream") else requests[0]
        return finish(self.start(name, given, metadata=metadata, **more), kind)

    def ask_aio(self, name: str, requests: Sequence[bytes], *told: Step) -> Outcome:
        """Do the same with the client of grpc.aio."""
        seen: Outcome = self.run(self._ask_aio(name, requests, told))
        return seen

    async def _ask_aio(self, name: str, requests: Sequence[bytes], told: Sequence[Step]) -> Outcome:
        kind = kind_of(name)
        given = iter(requests) if kind.startswith("stream") else requests[0]
        metadata = (*self.metadata, *steps(*told))
        call = method_of(self.aio, name)(given, metadata=metadata, timeout=TIMEOUT)
        messages: list[bytes] = []
        try:
            if kind.endswith("stream"):
                async for message in call:
                    messages.append(message)  # noqa: PERF401 - what came before an error counts
            else:
                messages.append(await call)
        except grpc.RpcError:
            pass
        return outcome_of(
            await call.code(),
            await call.details(),
            messages,
            await call.initial_metadata(),
            await call.trailing_metadata(),
        )


def finish(call: Any, kind: str = "stream_stream") -> Outcome:
    """Read the rest of a sync call, and return its outcome."""
    messages: list[bytes] = []
    try:
        if kind.endswith("stream"):
            for message in call:
                messages.append(message)  # noqa: PERF402 - what came before an error counts
        else:
            messages.append(call.result())
    except (grpc.RpcError, grpc.FutureCancelledError):
        pass
    return outcome(call, messages)


LEASES = find_spec("corral.client") is not None


class Leased(Way):
    """The backend's own address, leased from the loader, with the SDK's clients."""

    def __init__(self, name: str, loader: str, run: Run) -> None:
        super().__init__(name, loader, run, refuses=CONTROL)
        self.channel.model.ready(TIMEOUT)
        run(self.aio.model.ready(TIMEOUT))

    def open(self, *options: tuple[str, Any]) -> Any:
        from corral import client
        from corral.client.blocking_calls import Router

        size = dict(options).get(_LARGEST, -1)
        return _Channel(client.connect(self.name, self.address, max_message_size=size), Router)

    async def _open_aio(self) -> Any:
        from corral.client import aio

        model = aio.connect(self.name, self.address, max_message_size=-1)
        return _Channel(model, aio._Router)


class _Channel:
    """The channel for an SDK client's stub, for calls on raw bytes."""

    def __init__(self, model: Any, router: Callable[[Any], Any]) -> None:
        self.model = model
        self.close = model.close
        self._router = router(model._keeper)

    def __getattr__(self, kind: str) -> Any:
        make = getattr(self._router, kind)
        rules = getattr(self.model._keeper, "rules", None)

        def method(*given: Any, **named: Any) -> Any:
            made = make(*given, **named)
            # The blocking client makes all methods when it connects; this one is added later.
            if hasattr(made, "make") and rules is not None and rules.current is not None:
                rules.current.add([made])
            return made

        return method

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
