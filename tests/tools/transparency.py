"""A standalone backend, a loader, and the routes to the models of both, side by side.

Each route leads to its own process, all running the same program, so the same calls find the same
state.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings

from corral.loader.v1 import loader_pb2
from tests.tools.fake_backend import serving
from tests.tools.outcomes import Outcome
from tests.tools.running import LoaderUnderTest
from tests.tools.ways import CONTROL, LEASES, Leased, Way

T = TypeVar("T")

ENDPOINTS = find_spec("services.loader.endpoints") is not None
MODELS = ["gateway", *["endpoint"] * ENDPOINTS, *["leased"] * LEASES]

BEHAVIOUR: dict[str, Any] = {
    "echo": "prompt",
    "tokens": 3,
    "token_seconds": 0,
    "write_files": False,
    # Fixed values, since these would differ between processes.
    "identity": "fake.bin",
    "state": "READY",
    "memory_mib": 7,
}


class World:
    """All routes to a backend, the one without a loader first."""

    def __init__(self, home: Path, runner: asyncio.Runner) -> None:
        self.loader = LoaderUnderTest(home / "loader")
        self.ways: list[Way] = []
        self._direct = home / "direct"
        self._direct.mkdir()
        self._runner = runner
        self._open = AsyncExitStack()

    def run(self, work: Awaitable[T]) -> T:
        """Run a coroutine; all run in one loop."""

        async def awaited() -> T:
            return await work

        return self._runner.run(awaited())

    def start(self, *arguments: str) -> None:
        address = f"unix:{self._direct}/b.sock"
        self.run(self._start(address, arguments))
        loader = self.loader.service.address
        self.ways.append(Way("direct", address, self.run))
        for name in MODELS:
            named = (("corral-model", name),)
            if name == "gateway":
                way = Way(name, loader, self.run, metadata=named, refuses=CONTROL)
            elif name == "endpoint":
                socket = self.loader.home / "run" / "models" / f"{name}.sock"
                way = Way(name, f"unix:{socket}", self.run, refuses=CONTROL)
            else:
                way = Leased(name, loader, self.run)
            self.ways.append(way)

    async def _start(self, address: str, arguments: Sequence[str]) -> None:
        running = serving(self._direct, "--addr", address, **BEHAVIOUR)
        await (await self._open.enter_async_context(running)).load()
        for name in MODELS:
            self.loader.add_backend(name, **BEHAVIOUR)
            self.loader.add_model(name, name)
        await self.loader.start(*arguments)
        for name in MODELS:
            await self.loader.control.LoadModel(loader_pb2.LoadModelRequest(name=name))

    def close(self) -> None:
        for way in self.ways:
            way.close()
        self.run(self.loader.close())
        self.run(self._open.aclose())


@contextmanager
def running_world(home: Path, *arguments: str) -> Iterator[World]:
    """Start a world and stop it at the end; the loader gets these arguments."""
    with asyncio.Runner() as runner:
        world = World(home, runner)
        try:
            world.start(*arguments)
            yield world
        finally:
            world.close()


def same(world: World, act: Callable[[Way], Outcome], *, early: bool = False) -> Outcome:
    """Make the same call on every route, check that the outcomes are equal, and return one.

    `early`: the call is a stream that ends together with its initial metadata. grpc.aio, the
    gateway's client, then loses the metadata if the status is read first.
    """
    first, *others = ((way, act(way)) for way in world.ways)

    def expected(way: Way, seen: Outcome) -> Outcome:
        lost = early and way.name == "gateway" and not (seen.initial or seen.messages)
        return replace(first[1], initial=()) if lost else first[1]

    wrong = [one for one in others if one[1] != expected(*one)]
    assert not wrong, f"{wrong} differ from {first}"
    return first[1]


def examples(count: int) -> settings:
    """Return settings for `count` examples, the same ones each time; more and other ones on demand.

    TRANSPARENCY_EXAMPLES=100 tries a hundred times as many, different ones in each run.
    """
    factor = int(os.environ.get("TRANSPARENCY_EXAMPLES", "0"))
    return settings(
        max_examples=count * (factor or 1),
        derandomize=not factor,
        database=None,
        deadline=None,
        # Backends have state: what failed once may not fail again.
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
