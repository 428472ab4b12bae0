"""The fake backend, misbehaving in every way it supports, as its clients see it."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from corral.backend import backend_pb2 as pb
from tests.fakes.backend_fake import PROGRAM
from tests.tools.fake_backend import Running, serving, start
from tests.tools.processes import cpu_seconds, free_port
from tests.tools.waiting import eventually

HEALTH = pb.HealthMessage()
SHORT = 0.5


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(10):
        _, err = await process.communicate()
    return process.returncode, err.decode()


async def silent(call: Any) -> None:
    """Assert that a call with a short deadline gets no answer."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"start": "exit:3"}, 3, "cannot open libfoo.so"),
        ({"start": "kill:SIGSEGV", "start_text": "boo"}, -signal.SIGSEGV, "boo"),
        ({"start": "exit:1", "start_seconds": 0.1}, 1, "cannot open"),
        ({"no_such_thing": 1}, 2, "no setting 'no_such_thing'"),
        ({"start": "sulk"}, 2, "is not one of"),
    ],
)
async def test_ends_at_start(
    tmp_path: Path, settings: dict[str, Any], code: int, said: str
) -> None:
    ended, err = await end_of(await start(tmp_path, **settings))
    assert ended == code and said in err


async def test_addresses(tmp_path: Path) -> None:
    refused = await start(tmp_path, "--addr", f"unix:{tmp_path}/x", unix=False)
    assert await end_of(refused) == (2, f"fake: unknown address unix:{tmp_path}/x\n")
    port = free_port()
    async with serving(tmp_path, "--addr", f"127.0.0.1:{port}", elsewhere=True) as fake:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await fake.stub.Health(HEALTH)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        listening = psutil.Process(fake.process.pid).net_connections("tcp")
        assert port not in [one.laddr.port for one in listening]
    async with serving(tmp_path, "--addr", f"127.0.0.1:{port}"):
        code, err = await end_of(await start(tmp_path, "--addr", f"127.0.0.1:{port}"))
        assert code == 1 and "cannot listen" in err


async def test_hangs_at_start(tmp_path: Path) -> None:
    process = await start(tmp_path, start="hang", ignore_sigterm=True, stdout_lines=2)
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"noise 0")
    process.terminate()
    assert psutil.Process(process.pid).is_running()
    process.kill()
    assert (await end_of(process))[0] == -signal.SIGKILL


async def test_health(tmp_path: Path) -> None:
    async with serving(tmp_path, health_seconds=0.3) as fake:
        began = time.monotonic()
        assert (await fake.stub.Health(HEALTH, timeout=5)).message == b"OK"
        assert time.monotonic() - began > 0.1
        behave(tmp_path, health="hang")
        await silent(fake.stub.Health(HEALTH, timeout=SHORT))
        behave(tmp_path, health="not_ok")
        assert (await fake.stub.Health(HEALTH)).message != b"OK"
        behave(tmp_path, health="status:UNAVAILABLE")
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            await fake.stub.Health(HEALTH)


def behave(folder: Path, **settings: object) -> None:
    new = folder / "new.json"
    new.write_text(json.dumps(settings))
    new.rename(folder / "behaviour.json")


async def test_one_worker_answers_no_health_meanwhile(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1) as fake:
        await fake.load()
        call = fake.stub.Predict(pb.PredictOptions(Prompt="wait"))
        await silent(fake.stub.Health(HEALTH, timeout=SHORT))
        call.cancel()
        assert (await fake.stub.Health(HEALTH, timeout=5)).message == b"OK"


async def test_loads(tmp_path: Path) -> None:
    async with serving(tmp_path) as fake:
        for how, said in (("refuse", "no such architecture"), ("oom", "out of memory")):
            behave(tmp_path, load=how)
            answer = await fake.load()
            assert not answer.success and said in answer.message
        for how, code in (("error", "INVALID_ARGUMENT"), ("status:INTERNAL", "INTERNAL")):
            behave(tmp_path, load=how, load_text="so there")
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await fake.load()
            assert failed.value.code().name == code and failed.value.details() == "so there"
        behave(tmp_path, load="hang")
        await silent(fake.stub.LoadModel(pb.ModelOptions(), timeout=SHORT))
        behave(tmp_path, load_seconds=0.5, load_progress=True)
        before = cpu_seconds(fake.process.pid)
        assert (await fake.load()).success
        assert cpu_seconds(fake.process.pid) - before > 0.1
        behave(tmp_path, load_memory_mib=64)
        memory = psutil.Process(fake.process.pid).memory_info().rss
        await fake.load()
        assert psutil.Process(fake.process.pid).memory_info().rss - memory > 50 * 2**20
        behave(tmp_path, load="crash")
        with pytest.raises(grpc.aio.AioRpcError):
            await fake.load()
        assert await fake.ended() == -signal.SIGABRT


async def test_the_first_loads_fail_over_restarts(tmp_path: Path) -> None:
    async def tries(count: int) -> list[bool]:
        async with serving(tmp_path, load_failures=3) as fake:
            return [(await fake.load()).success for _ in range(count)]

    assert await tries(2) == [False, False]
    assert await tries(2) == [False, True]


async def test_crashes(tmp_path: Path) -> None:
    stream = pb.PredictOptions(Tokens=100)
    async with serving(tmp_path, crash_after_messages=3, crash_with="segv") as fake:
        await fake.load()
        received = 0
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in fake.stub.PredictStream(stream):
                received += 1
        assert received == 3 and await fake.ended() == -signal.SIGSEGV
    async with serving(tmp_path, crash_after=0.1, crash_with="exit:9", crash_text="ouch") as fake:
        await fake.load()
        assert await end_of(fake.process) == (9, "ouch\n")
    async with serving(tmp_path, crash=True) as fake:
        await fake.load()
        with pytest.raises(grpc.aio.AioRpcError):
            await fake.stub.Embedding(pb.PredictOptions())
        assert await fake.ended() == -signal.SIGKILL


async def test_freezes(tmp_path: Path) -> None:
    async with serving(tmp_path, freeze_after=0.1) as fake:
        await fake.load()
        process = psutil.Process(fake.process.pid)
        await eventually(lambda: process.status() == psutil.STATUS_STOPPED, what="the freeze")


async def test_calls(tmp_path: Path) -> None:
    async with serving(tmp_path) as fake:
        await fake.load()
        behave(tmp_path, call="hang")
        await silent(fake.stub.Predict(pb.PredictOptions(), timeout=SHORT))
        behave(tmp_path, call="close")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await fake.stub.Predict(pb.PredictOptions(), timeout=5)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        behave(tmp_path, unimplemented="Status, Free")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await fake.stub.Status(HEALTH, timeout=5)
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
        behave(tmp_path, state="busy", memory_mib=7)
        status = await fake.stub.Status(HEALTH)
        assert status.state == pb.StatusResponse.BUSY and status.memory.total == 7 * 2**20
        behave(tmp_path, message_bytes=1000)
        assert len((await fake.stub.Predict(pb.PredictOptions(Prompt="x"))).message) == 1000
        behave(tmp_path, call_seconds=0.1, leak_mib=32)
        memory = psutil.Process(fake.process.pid).memory_info().rss
        for _ in range(2):
            await fake.stub.Predict(pb.PredictOptions())
        assert psutil.Process(fake.process.pid).memory_info().rss - memory > 50 * 2**20
        behave(tmp_path, free="fail")
        assert not (await fake.stub.Free(HEALTH)).success
        behave(tmp_path, free="hang")
        await silent(fake.stub.Free(HEALTH, timeout=SHORT))


async def test_parallel_calls(tmp_path: Path) -> None:
    async with serving(tmp_path, parallel=1) as fake:
        await fake.load()
        call = fake.stub.Predict(pb.PredictOptions(Prompt="wait"))
        await eventually(lambda: is_busy(fake), what="the first call")
        await silent(fake.stub.Predict(pb.PredictOptions(), timeout=SHORT))
        behave(tmp_path, parallel=1, queue=False)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await fake.stub.Predict(pb.PredictOptions(), timeout=5)
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        call.cancel()
        await eventually(lambda: is_free(fake), what="the end of the first call")
        await fake.stub.Predict(pb.PredictOptions(), timeout=5)
        behave(tmp_path, parallel=1, ignore_cancel=True)
        await silent(fake.stub.Predict(pb.PredictOptions(Prompt="wait"), timeout=SHORT))
        await silent(fake.stub.Predict(pb.PredictOptions(), timeout=SHORT))
        assert await is_busy(fake)


async def is_busy(fake: Running) -> bool:
    return bool((await fake.stub.Status(HEALTH)).state == pb.StatusResponse.BUSY)


async def is_free(fake: Running) -> bool:
    return bool((await fake.stub.Status(HEALTH)).state == pb.StatusResponse.READY)


async def test_a_stream_that_stalls(tmp_path: Path) -> None:
    async with serving(tmp_path, stall_after=2, token_seconds=0.01, tokens=5) as fake:
        await fake.load()
        stream = fake.stub.PredictStream(pb.PredictOptions(), timeout=SHORT)
        received = []
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for reply in stream:
                received.append(reply.message)  # noqa: PERF401 - what came before the error counts
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert received == [b"0 ", b"1 "]


async def test_processes_and_signals(tmp_path: Path) -> None:
    settings = {"children": 1, "escapee": 1, "stubborn_children": 1}
    async with serving(tmp_path, ignore_sigterm=True, **settings) as fake:
        children = psutil.Process(fake.process.pid).children()
        groups = sorted(os.getpgid(child.pid) == child.pid for child in children)
        assert groups == [False, False, True]
        fake.process.terminate()
        assert (await fake.stub.Health(HEALTH)).message == b"OK"
        for child in children:
            child.kill()
    async with serving(tmp_path, sigterm_seconds=0.2, notes="notes.txt") as fake:
        began = time.monotonic()
        fake.process.terminate()
        assert await fake.ended() == 0 and time.monotonic() - began >= 0.2
        assert (tmp_path / "notes.txt").read_text() == "ended in peace\n"


async def test_it_ends_with_its_starter(tmp_path: Path) -> None:
    shell = await asyncio.create_subprocess_shell(
        shlex.join([sys.executable, str(PROGRAM), "--addr", "127.0.0.1:0"]) + " & wait",
        stdout=asyncio.subprocess.PIPE,
        cwd=tmp_path,
    )
    assert shell.stdout is not None
    assert (await shell.stdout.readline()).startswith(b"ready fake")
    shell.kill()
    async with asyncio.timeout(10):
        await shell.wait()
        assert await shell.stdout.read() == b"", "the pipe closes when the backend is gone"


@pytest.mark.parametrize(
    ("kind", "contains"),
    [("lines", b"\nflood x"), ("endless", b"x" * 5000), ("binary", b"\0\1"), ("progress", b"x\r")],
)
async def test_floods(tmp_path: Path, kind: str, contains: bytes) -> None:
    async with serving(tmp_path, flood="stderr", flood_kind=kind) as fake:
        assert fake.process.stderr is not None
        received = await fake.process.stderr.readexactly(300_000)
        assert contains in received
        assert (await fake.stub.Health(HEALTH)).message == b"OK"


async def test_a_flood_with_a_rate_and_an_end(tmp_path: Path) -> None:
    async with serving(tmp_path, log="json", flood_bytes=100_000) as fake:
        await fake.load()
        behave(tmp_path, flood="stderr", log="glog")
        await fake.load()
        assert fake.process.stderr is not None
        assert json.loads(await fake.process.stderr.readline())["level"] == "debug"
        began = time.monotonic()
        await fake.process.stderr.readexactly(20_000)
        assert 0.1 < time.monotonic() - began < 5
        behave(tmp_path)
        await fake.stub.Health(HEALTH)
        fake.process.kill()
        rest = await fake.process.stderr.read()
        assert len(rest) < 50_000 and b'"warning"' in rest
