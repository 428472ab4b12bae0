"""The fake backend, scripted step by step."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.tools.fake_backend import Running, serving
from tests.tools.outcomes import Step, joined, method_of, pairs, steps
from tests.tools.waiting import eventually

INITIAL = (("a", "1"), ("a", "2"), ("b-bin", b"\0\xff"))


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


def call(fake: Running, given: Any, *told: Step, name: str = "Forward", **more: Any) -> Any:
    metadata = (*more.pop("metadata", ()), *steps(*told))
    return method_of(fake.channel, name)(given, metadata=metadata, timeout=10, **more)


async def test_answers_and_metadata(fake: Running) -> None:
    told = (("initial", pairs(INITIAL)), ("echo", 1), ("write", 6, 2))
    running = call(fake, [b"x"], *told, ("end", "ABORTED", "so there", pairs(INITIAL)))
    seen = []
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        async for message in running:
            seen.append(message)  # noqa: PERF401 - what came before the error counts
    assert seen == [b"x", b"\0\0\0\0..", b"\0\0\0\1.."]
    assert tuple(await running.initial_metadata()) == INITIAL
    assert (failed.value.code().name, failed.value.details()) == ("ABORTED", "so there")
    assert tuple(failed.value.trailing_metadata()) == INITIAL


async def test_all_kinds_and_unknown_rpcs(fake: Running) -> None:
    assert await call(fake, b"x", ("echo",), name="Predict") == b"x"
    parts = [b"", b"1", b"22"]
    split = call(fake, joined(parts), ("read",), ("split",), name="PredictStream")
    assert [message async for message in split] == parts
    assert [m async for m in call(fake, parts, ("echo",), name="Nobody")] == parts


async def test_what_it_sees(fake: Running) -> None:
    named = (("fake-call", "mine"), ("x-bin", b"\1"))
    running = call(fake, None, ("see",), ("wait", "go"), ("read",), metadata=named)
    seen = json.loads(await running.read())
    assert ["x-bin", "AQ=="] in seen["metadata"] and 9 < seen["remaining"] <= 10

    async def progress() -> Any:
        return json.loads(await call(fake, b"", ("progress", "mine"), name="Predict"))

    assert (await progress())["received"] == 0
    await call(fake, b"", ("release", "go"), ("write", 0, 1), name="Predict")
    await running.write(b"1")
    await running.done_writing()
    assert await running.read() is grpc.aio.EOF
    now = await progress()
    assert (now["received"], now["sent"], now["half_closed"], now["end"]) == (1, 1, True, "done")
    stuck = call(fake, b"", ("hang",), name="PredictStream", metadata=named)
    await eventually(lambda: _runs(progress), what="the call")
    stuck.cancel()
    await eventually(lambda: _cancelled(progress), what="its end")


async def _runs(progress: Any) -> bool:
    return bool((await progress())["end"] == "")


async def _cancelled(progress: Any) -> bool:
    return bool((await progress())["end"] == "cancelled")


async def test_a_crash(fake: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        await call(fake, b"", ("crash",), name="Predict")
    assert await fake.ended() < 0
