"""Logs of real backends through StreamLogs: levels, pipes, floods, and gaps for slow readers."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2 as pb
from tests.tools.loader_calls import MODEL, load, prompt
from tests.tools.running import LoaderUnderTest, eventually

Line = pb.LogLine


async def history(loader: LoaderUnderTest, **fields: Any) -> list[pb.StreamLogsResponse]:
    request = pb.StreamLogsRequest(name="m", **fields)
    return [message async for message in loader.control.StreamLogs(request, timeout=10)]


async def texts(loader: LoaderUnderTest, **fields: Any) -> list[str]:
    return [message.line.text for message in await history(loader, **fields)]


async def test_levels_and_pipes(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", log="text", stdout_lines=1)
    loader.add_model("m", "fake")
    await loader.start()
    for _ in range(2):
        await loader.data.Predict(prompt("x"), metadata=MODEL)

    async def logged() -> bool:
        return any("Predict" in text for text in (await texts(loader))[-1:])

    await eventually(logged, what="the line of the last call")
    # Health, LoadModel and two calls: the levels alternate.
    said = {message.line.text: message.line for message in await history(loader)}
    assert {line.level for line in said.values()} >= {
        Line.LEVEL_DEBUG,
        Line.LEVEL_INFO,
        Line.LEVEL_WARNING,
        Line.LEVEL_ERROR,
    }
    serious = await texts(loader, minimum_level=Line.LEVEL_WARNING)
    assert serious == ["[WARNING] call 3: Predict", "[ERROR] call 4: Predict"]
    (noise,) = await texts(loader, streams=[Line.STREAM_STDOUT])
    assert noise.startswith("noise 0")
    own = await history(loader, streams=[Line.STREAM_LOADER])
    assert own[0].line.text.startswith("starting fake") and own[0].line.level == Line.LEVEL_INFO
    newest = await texts(loader, streams=[Line.STREAM_STDERR], tail_lines=1)
    assert newest == ["[ERROR] call 4: Predict"]


async def test_an_end_stands_in_the_log(running: LoaderUnderTest) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await running.data.Predict(prompt("crash"), metadata=MODEL)
    (line,) = [
        message.line
        for message in await history(running, minimum_level=Line.LEVEL_ERROR)
        if message.line.stream == Line.STREAM_LOADER
    ]
    assert line.text == "fake was killed by SIGKILL"
    await running.data.Predict(prompt("x"), metadata=MODEL)
    starts = await history(running, streams=[Line.STREAM_LOADER])
    assert starts[-1].line.generation == line.generation + 1


async def test_history_that_was_pushed_out(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", stderr_lines=500)
    loader.add_model("m", "fake")
    await loader.start("--log-lines", "100")
    await loader.control.LoadModel(load())
    everything = await history(loader)
    oldest = everything[0].line.sequence
    assert [message.missed_lines for message in everything] == [0] * 100
    resumed = await history(loader, after_sequence=1)
    assert resumed[0].missed_lines == oldest - 2 and resumed[0].line.sequence == oldest
    only_told = await history(loader, after_sequence=1, streams=[Line.STREAM_STDOUT])
    assert [message.HasField("line") for message in only_told] == [False]
    assert only_told[0].missed_lines == oldest - 2
    before_a_restart = await history(loader, after_sequence=10_000)
    assert [m.line for m in before_a_restart] == [m.line for m in everything]


async def test_a_slow_reader_of_a_flood_is_told_what_it_missed(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", flood="stderr")
    loader.add_model("m", "fake")
    await loader.start("--log-bytes", "64KiB")
    await loader.control.LoadModel(load())
    stream = loader.control.StreamLogs(pb.StreamLogsRequest(name="m", follow=True))
    last = (await stream.read()).line.sequence
    missed = 0
    async with asyncio.timeout(30):
        while not missed:
            message = await stream.read()
            missed = message.missed_lines
            if message.HasField("line"):
                assert message.line.sequence == last + missed + 1
                last = message.line.sequence
    kept = await texts(loader)
    assert sum(map(len, kept)) < 64 * 1024
    # Calls to other models, and to this one, continue.
    await loader.data.Predict(backend_pb2.PredictOptions(), metadata=MODEL, timeout=10)


@pytest.mark.parametrize("kind", ["endless", "binary", "progress"])
async def test_floods_that_are_no_lines(loader: LoaderUnderTest, kind: str) -> None:
    loader.add_backend("fake", flood="stdout", flood_kind=kind)
    loader.add_model("m", "fake")
    await loader.start("--log-bytes", "100KiB")
    await loader.control.LoadModel(load())

    async def flooded() -> bool:
        return any(m.line.sequence > 2000 for m in await history(loader))

    await eventually(flooded, what="the flood")
    kept = await texts(loader)
    assert 0 < sum(map(len, kept)) <= 100 * 1024
    assert max(map(len, kept)) <= 8192


@pytest.mark.parametrize(
    "fields", [{"streams": [0]}, {"streams": [99]}, {"minimum_level": 99}, {"tail_lines": -1}]
)
async def test_what_makes_no_sense(running: LoaderUnderTest, fields: dict[str, Any]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await history(running, **fields)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
