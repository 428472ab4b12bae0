"""A model endpoint looks like a plain backend: always there, and no call is lost to unloads."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from hyperframe.frame import Frame, PingFrame, SettingsFrame

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc
from services.common.errors import (
    BackendCrashedError,
    LoadBackoffError,
    ModelBusyError,
    ModelLoadError,
    ModelUnloadedError,
    QueueFullError,
)
from services.loader.endpoints.http2 import PREFACE
from tests.tools.loader_calls import (
    FOREVER,
    READY,
    UNLOADED,
    begin,
    load,
    model,
    prompt,
    refused,
    unload,
)
from tests.tools.processes import free_port
from tests.tools.running import LoaderUnderTest, eventually
from tests.tools.service import start_service


@asynccontextmanager
async def client(address: str, *options: tuple[str, Any]) -> AsyncIterator[Any]:
    alone = ("grpc.use_local_subchannel_pool", 1)
    async with grpc.aio.insecure_channel(address, options=[alone, *options]) as channel:
        yield backend_pb2_grpc.BackendStub(channel)


async def endpoint(loader: LoaderUnderTest, name: str = "m", at: int = 0) -> str:
    async def found() -> str:
        endpoints = (await model(loader, name)).endpoints
        return endpoints[at] if len(endpoints) > at else ""

    return str(await eventually(found, what="the endpoint"))


async def calls(loader: LoaderUnderTest) -> tuple[int, int]:
    """Return the number of open calls, and of all calls so far."""
    instances = (await model(loader)).instances
    return (instances[0].active_calls, instances[0].total_calls) if instances else (0, 0)


def loads(loader: LoaderUnderTest) -> int:
    return sum("load" in line for line in loader.notes("fake"))


async def test_all_kinds_of_calls_and_their_count(running: LoaderUnderTest) -> None:
    address = await endpoint(running)
    assert address == f"unix:{running.home}/run/models/m.sock"
    async with client(address) as stub:
        reply = await stub.Predict(prompt("hello"), metadata=(("my-key", "my-value"),), timeout=20)
        seen = json.loads(reply.message)
        assert seen["prompt"] == "hello" and seen["metadata"]["my-key"] == "my-value"
        streamed = stub.PredictStream(pb.PredictOptions(Tokens=5))
        assert b"".join([one.message async for one in streamed]) == b"0 1 2 3 4 "
        both = stub.AudioTranscriptionLive()
        await both.write(pb.TranscriptLiveRequest(config=pb.TranscriptLiveConfig(language="de")))
        assert (await both.read()).ready
        assert await calls(running) == (1, 3)
        await both.done_writing()
        assert (await both.read()).HasField("final_result")
        assert await both.read() is grpc.aio.EOF
        assert ("fake-trailing", "t") in list(await both.trailing_metadata())
        large = await stub.Predict(prompt("x" * 3_000_000), metadata=(("big", "y" * 6000),))
        assert len(json.loads(large.message)["prompt"]) == 3_000_000
        await eventually(lambda: _is(calls(running), (0, 4)))
        assert (await stub.Health(pb.HealthMessage())).message == b"OK"
        await stub.Status(pb.HealthMessage())
        assert await calls(running) == (0, 4)  # probes do not count


async def _is(work: Any, value: Any) -> bool:
    return bool(await work == value)


async def test_probes_load_nothing_and_control_changes_nothing(running: LoaderUnderTest) -> None:
    async with client(await endpoint(running)) as stub:
        for _ in range(3):
            assert (await stub.Health(pb.HealthMessage())).message == b"OK"
            assert (await stub.Status(pb.HealthMessage())).state == pb.StatusResponse.UNINITIALIZED
            assert (await stub.Free(pb.HealthMessage())).success
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.GetMetrics(pb.MetricsRequest())
            assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert (await model(running)).state == UNLOADED
        # What LocalAI does with an external backend.
        options = pb.ModelOptions(Model="something else", ContextSize=1)
        large = pb.ModelOptions(Model="more than any window has room for " * 40_000)
        assert (await stub.LoadModel(large, timeout=20)).success
        assert (await model(running)).state == READY and loads(running) == 1
        for _ in range(3):
            assert (await stub.Predict(prompt("a"))).message
            assert (await stub.LoadModel(options)).success
            assert (await stub.LoadModel(large, timeout=20)).success
            assert (await stub.Free(pb.HealthMessage())).success
        assert loads(running) == 1 and await calls(running) == (0, 3)


async def test_an_open_stream_holds_its_model(loader: LoaderUnderTest) -> None:
    await begin(loader, "m")
    await loader.start("--drain-timeout", "300ms")
    address = await endpoint(loader)
    async with client(address) as stub, client(address) as other:
        stream = stub.PredictStream(FOREVER)
        await stream.read()
        assert isinstance(await refused(loader.control.UnloadModel(unload())), ModelBusyError)
        assert await calls(loader) == (1, 1)
        await stream.read()
        assert (await stub.Predict(prompt("new connection"))).message
        second = other.PredictStream(FOREVER)
        await second.read()
        stream.cancel()
        await eventually(lambda: _is(calls(loader), (1, 3)))
        await loader.control.UnloadModel(unload(force=True))
        assert isinstance(await refused(end(second)), ModelUnloadedError)
        assert (await model(loader)).state == UNLOADED
        assert (await other.Predict(prompt("and again"), timeout=20)).message


async def test_a_client_that_vanishes_holds_nothing(running: LoaderUnderTest) -> None:
    address = await endpoint(running)
    program = (
        "import sys,grpc;from corral.backend import backend_pb2 as p,backend_pb2_grpc as g;"
        "s=g.BackendStub(grpc.insecure_channel(sys.argv[1]));"
        "a=[s.PredictStream(p.PredictOptions(Prompt='x')) for _ in range(5)];"
        "[next(x) for x in a];print('open',flush=True);[x for y in a for x in y]"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, address, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).strip() == b"open"
    assert (await calls(running))[0] == 5
    process.kill()
    await process.wait()
    await eventually(lambda: _is(calls(running), (0, 5)), timeout=2)


async def test_a_slow_load_is_waited_for(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", load_seconds=2.0)
    loader.add_model("m", "fake")
    await loader.start()
    pings = (("grpc.keepalive_time_ms", 300), ("grpc.keepalive_timeout_ms", 300))
    async with client(await endpoint(loader), *pings) as stub:
        first, late = stub.Predict(prompt("a"), timeout=20), stub.Predict(prompt("b"), timeout=0.5)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await late
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        cancelled = stub.Predict(prompt("c"))
        await eventually(lambda: _is(queued(loader), 2))
        cancelled.cancel()
        await eventually(lambda: _is(queued(loader), 1))
        assert (await first).message
        assert await calls(loader) == (0, 1) and loads(loader) == 1


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def there(path: Path) -> bool:
    return path.exists()


async def end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def queued(loader: LoaderUnderTest) -> int:
    return (await model(loader)).queued_calls


async def test_a_full_queue_refuses(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake", load_seconds=1.5)
    loader.add_model("m", "fake")
    await loader.start("--queue-size", "3")
    async with client(await endpoint(loader)) as stub:
        waiting = [asyncio.ensure_future(_ask(stub)) for _ in range(3)]
        await eventually(lambda: _is(queued(loader), 3))
        error = await refused(stub.Predict(prompt("too many")))
        assert isinstance(error, QueueFullError) and error.retry_after
        assert all(await asyncio.gather(*waiting))
        await eventually(lambda: _is(calls(loader), (0, 3)))


async def _ask(stub: Any) -> bool:
    return bool((await stub.Predict(prompt("x"), timeout=30)).message)


async def test_no_call_is_lost_by_unloads(running: LoaderUnderTest) -> None:
    address = await endpoint(running)
    done = 0
    stop = False

    async def work(stub: Any) -> None:
        nonlocal done
        while not stop:
            assert (await stub.Predict(prompt("x"), timeout=30)).message
            done += 1

    def busy_or_done(before: int) -> bool:
        return done > before + 20 or workers[0].done()

    async with client(address) as one, client(address) as two:
        workers = [asyncio.ensure_future(work(stub)) for stub in (one, one, two)]
        for _ in range(6):
            await eventually(partial(busy_or_done, done))
            await running.control.UnloadModel(unload())
        stop = True
        await asyncio.gather(*workers)
    assert loads(running) >= 6


async def test_a_failed_load_says_why(running: LoaderUnderTest) -> None:
    running.behave("fake", load="refuse", load_text="no such file: /models/x.gguf")
    async with client(await endpoint(running)) as stub:
        error = await refused(stub.Predict(prompt("a")))
        assert isinstance(error, ModelLoadError) and "/models/x.gguf" in str(error)
        assert isinstance(await refused(stub.Predict(prompt("a"))), LoadBackoffError)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Health(pb.HealthMessage())
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        running.behave("fake")
        await running.control.LoadModel(load(reset_backoff=True))
        assert (await stub.Predict(prompt("a"))).message


async def test_a_crash_is_told_with_its_cause(running: LoaderUnderTest) -> None:
    async with client(await endpoint(running)) as stub:
        streams = [stub.PredictStream(FOREVER) for _ in range(4)]
        for stream in streams:
            await stream.read()
        psutil.Process((await model(running)).instances[0].pid).kill()

        for stream in streams:
            error = await refused(end(stream))
            assert isinstance(error, BackendCrashedError) and "SIGKILL" in str(error)
        assert (await stub.Predict(prompt("a"), timeout=20)).message
        await eventually(lambda: _is(calls(running), (0, 1)))


async def test_a_call_right_after_a_kill_waits_for_the_next_backend(
    running: LoaderUnderTest,
) -> None:
    address = await endpoint(running)
    for _ in range(5):
        async with client(address) as warm:
            await warm.Predict(prompt("a"), timeout=20)
        process = psutil.Process((await model(running)).instances[0].pid)
        group = [process, *process.children(recursive=True)]
        async with client(address) as stub:
            assert (
                await stub.Free(pb.HealthMessage())
            ).success  # connected, but nothing was forwarded
            for one in group:
                one.kill()
            assert (await stub.Predict(prompt("b"), timeout=20)).message
        await running.control.LoadModel(load(reset_backoff=True))


@pytest.mark.parametrize("policy", ["pick_first", "round_robin"])
async def test_an_idle_client_wakes_nothing(running: LoaderUnderTest, policy: str) -> None:
    option = ("grpc.lb_policy_name", policy)
    async with client(await endpoint(running), option) as stub:
        await stub.Predict(prompt("a"))
        before = _sockets(running)
        await running.control.UnloadModel(unload())
        if policy == "round_robin":
            await eventually(lambda: _sockets(running) - before, what="a new connection")
        else:
            await eventually(lambda: len(_sockets(running)) == 1, what="the end of the old one")
        with pytest.raises(AssertionError):
            await eventually(lambda: loads(running) > 1, timeout=0.7)
        assert (await model(running)).state == UNLOADED
        await stub.Predict(prompt("a"))
    assert loads(running) == 2


def _sockets(loader: LoaderUnderTest) -> set[str]:
    """Return the loader's sockets at the endpoint: the listener and one per connection."""
    process = psutil.Process(loader.service.pid)
    bound = f"{loader.home}/run/models/.new"  # before it was renamed
    found = set()
    for one in process.net_connections("unix"):
        path: Any = one.laddr  # a Unix socket's is a string
        with suppress(FileNotFoundError):
            if path == bound:
                found.add(os.readlink(f"/proc/{process.pid}/fd/{one.fd}"))
    return found


def _frames(sock: socket.socket, enough: Any) -> list[Frame]:
    got = b""
    found: list[Frame] = []
    sock.settimeout(10)
    while not enough(found):
        got += sock.recv(65536)
        while len(got) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(got[:9]))
            if len(got) < 9 + length:
                break
            frame.parse_body(memoryview(got[9 : 9 + length]))
            got = got[9 + length :]
            found.append(frame)
    return found


async def test_it_lives_without_a_backend(running: LoaderUnderTest) -> None:
    path = (await endpoint(running)).removeprefix("unix:")

    def talk() -> list[Frame]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            settings, ping = SettingsFrame(0), PingFrame(0, opaque_data=b"12345678")
            sock.sendall(PREFACE + settings.serialize() + ping.serialize())
            return _frames(sock, lambda found: len(found) == 3)

    ours, ack, pong = await asyncio.to_thread(talk)
    assert isinstance(ours, SettingsFrame) and "ACK" not in ours.flags
    assert isinstance(ack, SettingsFrame) and "ACK" in ack.flags
    assert isinstance(pong, PingFrame) and "ACK" in pong.flags and pong.opaque_data == b"12345678"
    assert (await model(running)).state == UNLOADED


async def test_who_may_use_a_socket(running: LoaderUnderTest) -> None:
    path = Path((await endpoint(running)).removeprefix("unix:"))
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    await running.service.stop()
    assert not there(path)


async def test_endpoints_follow_the_models(loader: LoaderUnderTest) -> None:
    await begin(loader, "m")
    first, second = free_port(), free_port()
    slash = {"name": "with/slash", "backend": "fake", "parameters": {"model": "m.bin"}}
    (loader.models / "slash.yaml").write_text(json.dumps(slash))
    loader.add_model("port", "fake", endpoint={"port": first})
    loader.add_model("auto", "fake", endpoint={"port": "auto"})
    loader.add_model("off", "fake", disabled=True)
    await loader.start("--endpoint-mode", "0660", "--endpoint-ports", f"{second}-{second}")
    folder = loader.home / "run" / "models"
    assert await endpoint(loader, "port", 1) == f"127.0.0.1:{first}"
    assert await endpoint(loader, "auto", 1) == f"127.0.0.1:{second}"
    odd = await endpoint(loader, "with/slash")
    assert odd.startswith(f"unix:{folder}/with")  # as much of it as fits in the path
    assert mode(folder / "m.sock") == 0o660
    assert mode(folder) == 0o710
    assert not there(folder / "off.sock")
    for address in (odd, f"127.0.0.1:{first}"):
        async with client(address) as stub:
            assert (await stub.Predict(prompt("a"))).message
    loader.add_model("new", "fake")
    await eventually(lambda: (folder / "new.sock").exists())
    loader.add_model("new", "fake", disabled=True)
    await eventually(lambda: not (folder / "new.sock").exists())
    (loader.models / "m.yaml").unlink()
    await eventually(lambda: not (folder / "m.sock").exists())
    loader.add_model("more", "fake", endpoint={"port": "auto"})

    async def lacks() -> str:
        return str((await model(loader, "more")).endpoint_error)

    assert "--endpoint-ports" in await eventually(lacks)
    loader.add_model("port", "fake", endpoint={"port": 70000})

    async def broken() -> str:
        return str((await model(loader, "port")).config_error)

    assert "endpoint.port" in await eventually(broken)


async def test_a_killed_loaders_sockets_are_taken_over(running: LoaderUnderTest) -> None:
    path = Path((await endpoint(running)).removeprefix("unix:"))
    runtime = str(running.home / "run")
    with pytest.raises(AssertionError, match="another loader has its sockets"):
        await start_service("loader", running.home / "second", "--runtime-path", runtime)
    assert there(path)
    running.service.process.send_signal(signal.SIGKILL)
    await running.service.process.wait()
    assert there(path)
    (path.parent / "gone.sock").touch()
    await running.channel.close()
    await running.start()
    async with client(await endpoint(running)) as stub:
        assert (await stub.Predict(prompt("a"))).message


async def test_a_slow_reader_fills_no_memory(running: LoaderUnderTest) -> None:
    running.behave("fake", message_bytes=1_000_000, tokens=2000, token_seconds=0.0)
    channel_options = (
        ("grpc.http2.lookahead_bytes", 2**30),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_receive_message_length", -1),
    )
    async with client(await endpoint(running), *channel_options) as stub:
        await stub.Predict(prompt("warm"))
        before = psutil.Process(running.service.pid).memory_info().rss
        stream = stub.PredictStream(pb.PredictOptions(Prompt="x"))
        await stream.read()
        await asyncio.to_thread(signal.sigtimedwait, [], 1.0)
        assert psutil.Process(running.service.pid).memory_info().rss - before < 8 * 1024**2
        stream.cancel()
        await eventually(lambda: _is(calls(running), (0, 2)))
