"""Clients other than grpc.aio at a model endpoint: they load it, and lose no call to unloads."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.callers import Calling, caller
from benchmarks.peers.environment import cache
from tests.tools.loader_calls import READY, UNLOADED, begin, model, unload
from tests.tools.running import LoaderUnderTest, eventually

CYCLES = 5
JS = pytest.mark.skipif(
    not shutil.which("node") or not (cache() / "node" / "node_modules").is_dir(),
    reason="needs node, and grpc-js as `python -m benchmarks reloads` installs it",
)


@pytest.mark.parametrize("kind", ["grpcio sync", pytest.param("grpc-js", marks=JS)])
async def test_no_call_is_lost_by_loads_and_unloads(loader: LoaderUnderTest, kind: str) -> None:
    await begin(loader, "m")
    await loader.start()

    async def address() -> str:
        return next(iter((await model(loader)).endpoints), "")

    async def ready() -> bool:
        return (await model(loader)).state == READY

    target = str(await eventually(address, what="the endpoint"))
    assert (await model(loader)).state == UNLOADED
    async with caller(kind, Calling(target, workers=4, rate=50)) as running:
        for _ in range(CYCLES):
            await eventually(ready)
            await loader.control.UnloadModel(unload())
        await eventually(ready)
        told = await running.end()
    # The scripted backend's answer contains more than the prompt.
    assert not [each for each in told.failures if each.code != "ANSWER"]
    assert len(told.calls) > CYCLES
    assert sum("load" in line for line in loader.notes("fake")) == CYCLES + 1
