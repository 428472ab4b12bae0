"""The ways to a backend: to the process itself, and all those that go through a loader.

Each leads to a process of its own, which runs the same program, so that the same calls find the same
state; and each makes the same calls in the same words.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
from hypothesis import HealthCheck, Phase, settings

from corral.loader.v1 import loader_pb2
from tests.tools.fake_backend import Running, serving
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
from tests.tools.running import LoaderUnderTest

T = TypeVar("T")

CONTROL = frozenset({"LoadModel", "Free"})
"""What a gateway does not pass on."""

LOCAL = (("grpc.use_local_subchannel_pool", 1),)
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class Way:
    """One way to a backend, for clients of both kinds."""

    def __init__(
        self,
        world: World,
        name: str,
        address: str,
        metadata: Metadata = (),
        refuses: frozenset[str] = frozenset(),
    ) -> None:
        self.world = world
        self.name = name
        self.address = address
        self.metadata = tuple(metadata)
        self.refuses = refuses
        options = [*LOCAL, *UNLIMITED]
        self.channel = grpc.insecure_channel(address, options=options)
        self.aio = world.run(_opened(address, options))

    def __repr__(self) -> str:
        return self.name

    def close(self) -> None:
        self.channel.close()
        self.world.run(self.aio.close())

    def open(self, *options: tuple[str, Any], **more: Any) -> grpc.Channel:
        """Return a channel of its own, with other options."""
        return grpc.insecure_channel(self.address, options=[*LOCAL, *options], **more)

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
        """Begin a call of the sync client; one with a single answer comes as a future."""
        kind = kind or kind_of(name)
        method = method_of(channel or self.channel, name, kind)
        begin = method if kind.endswith("stream") else method.future
        return begin(requests, timeout=timeout, metadata=(*self.metadata, *metadata), **more)

    def ask(self, name: str, requests: Sequence[bytes], *told: Step, **more: Any) -> Outcome:
        """Make a call, and return what the client saw; `told` are the backend's steps."""
        metadata = (*more.pop("metadata", ()), *(steps(*told) if told else ()))
        kind = more.get("kind") or kind_of(name)
        given = iter(requests) if kind.startswith("stream") else requests[0]
        return finish(self.start(name, given, metadata=metadata, **more), kind)

    def ask_aio(self, name: str, requests: Sequence[bytes], *told: Step, **more: Any) -> Outcome:
        """Do the same with the client of grpc.aio."""
        return self.world.run(self._ask_aio(name, requests, told, more))

    async def _ask_aio(
        self, name: str, requests: Sequence[bytes], told: Sequence[Step], more: dict[str, Any]
    ) -> Outcome:
        metadata = (*more.pop("metadata", ()), *(steps(*told) if told else ()))
        kind = more.pop("kind", "") or kind_of(name)
        more.setdefault("timeout", TIMEOUT)
        given = iter(requests) if kind.startswith("stream") else requests[0]
        call = method_of(self.aio, name, kind)(given, metadata=(*self.metadata, *metadata), **more)
        messages: list[bytes] = []
        try:
            if kind.endswith("stream"):
                async for message in call:
                    messages.append(message)  # noqa: PERF401
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
    """Read what is left of a call of the sync client, and return what the client saw."""
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


async def _opened(address: str, options: Any) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=options)


class World:
    """A backend that nobody loads, a loader, and the ways to the models of both."""

    WAYS = ("direct", "gateway")

    def __init__(self, home: Path, runner: asyncio.Runner) -> None:
        self.loader = LoaderUnderTest(home / "loader")
        self.ways: dict[str, Way] = {}
        self._home = home / "direct"
        self._home.mkdir()
        self._runner = runner
        self._open = AsyncExitStack()
        self._direct: Running

    def run(self, work: Awaitable[T]) -> T:
        """Run what is asynchronous: all of it in one loop."""

        async def awaited() -> T:
            return await work

        return self._runner.run(awaited())

    def start(self, *arguments: str, **behaviour: Any) -> None:
        self.run(self._start(arguments, {**BEHAVIOUR, **behaviour}))
        self.ways["direct"] = Way(self, "direct", self._direct.address)
        named = (("corral-model", "gateway"),)
        self.ways["gateway"] = Way(self, "gateway", self.loader.service.address, named, CONTROL)

    async def _start(self, arguments: Sequence[str], behaviour: dict[str, Any]) -> None:
        address = f"unix:{self._home}/b.sock"
        running = serving(self._home, "--addr", address, **behaviour)
        self._direct = await self._open.enter_async_context(running)
        await self._direct.load("gateway.bin")
        for name in self.WAYS[1:]:
            self.loader.add_backend(name, **{**behaviour, "announce": False})
            self.loader.add_model(name, name)
        await self.loader.start(*arguments)
        for name in self.WAYS[1:]:
            await self.loader.control.LoadModel(loader_pb2.LoadModelRequest(name=name))

    def close(self) -> None:
        for way in self.ways.values():
            way.close()
        self.run(self.loader.close())
        self.run(self._open.aclose())


BEHAVIOUR = {
    "echo": "prompt",
    "tokens": 3,
    "token_seconds": 0,
    "write_files": False,
    # What differs from process to process.
    "identity": "fake.bin",
    "state": "READY",
    "memory_mib": 7,
}


@contextmanager
def running_world(home: Path, *arguments: str, **behaviour: Any) -> Iterator[World]:
    """Start a world, and end it."""
    with asyncio.Runner() as runner:
        world = World(home, runner)
        try:
            world.start(*arguments, **behaviour)
            yield world
        finally:
            world.close()


def same(world: World, act: Callable[[Way], Outcome]) -> Outcome:
    """Do the same on every way, see that the client sees the same, and return that."""
    outcomes = {way: act(way) for way in world.ways.values()}
    first, *others = outcomes.items()
    for way, seen in others:
        assert seen == first[1], f"{way} has {seen}, {first[0]} {first[1]}"
    return first[1]


def examples(count: int) -> settings:
    """Return settings for so many examples, always the same ones; more and others on demand.

    TRANSPARENCY_EXAMPLES=100 tries a hundred times as many, and different ones in each run.
    """
    factor = int(os.environ.get("TRANSPARENCY_EXAMPLES", "0"))
    return settings(
        max_examples=count * (factor or 1),
        derandomize=not factor,
        # Backends have a state: what failed once may not fail again.
        phases=(Phase.explicit, Phase.generate),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
