"""How the gateway proxies calls: sizes, back-pressure, added metadata, and how calls end.

The backend is a bare server in the test, connected as an external one.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from corral.loader.v1 import loader_pb2 as pb
from services.common.errors import CorralError
from services.common.rpc.status import from_rpc_error
from tests.tools.loader_calls import FOREVER, MODEL, change, model, named, prompt
from tests.tools.running import LoaderUnderTest, eventually

LIMIT = 1 << 20
CHUNK = b"x" * 65536
WELL = {"Health": b"\x0a\x02OK", "LoadModel": b"\x10\x01", "Free": b"\x10\x01"}
PREDICT = "/backend.Backend/Predict"
STREAM = "/backend.Backend/PredictStream"
LIVE = "/backend.Backend/AudioTranscriptionLive"


class BareBackend(grpc.GenericRpcHandler):
    """A backend that handles each kind of call as the test scripts it."""

    def __init__(self) -> None:
        self.one: Callable[[Any, Any], Any] = self.answer
        self.many: Callable[[Any, Any], Any] = self.answer_all
        self.live: Callable[[Any, Any], Any] = self.answer_all
        self.written = 0
        self.ended = asyncio.Event()

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        if name in WELL:

            async def well(request: bytes, context: Any) -> bytes:
                return WELL[name]

            return grpc.unary_unary_rpc_method_handler(well)
        if details.method == STREAM:
            return grpc.unary_stream_rpc_method_handler(self.many)
        if details.method == LIVE:
            return grpc.stream_stream_rpc_method_handler(self.live)
        return grpc.unary_unary_rpc_method_handler(self.one)

    async def answer(self, request: bytes, context: Any) -> bytes:
        return request

    async def answer_all(self, requests: Any, context: Any) -> None:
        if isinstance(requests, bytes):
            await context.write(requests)
            return
        while (message := await context.read()) is not aio.EOF:
            await context.write(message)

    async def flood(self, requests: Any, context: Any) -> None:
        try:
            while True:
                await context.write(CHUNK)
                self.written += 1
        finally:
            self.ended.set()

    async def stall(self, requests: Any, context: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


@pytest.fixture
async def bare(loader: LoaderUnderTest) -> AsyncIterator[BareBackend]:
    backend = BareBackend()
    server = aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((backend,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loader.add_model("m", "bare")
    loader.add_model("n", "bare")
    await loader.start(
        "--external-backend", f"bare=127.0.0.1:{port}", "--max-message-size", str(LIMIT)
    )
    yield backend
    await server.stop(None)


async def idle(loader: LoaderUnderTest) -> bool:
    return all(each.active_calls == 0 for each in (await model(loader)).instances)


def raw(channel: aio.Channel) -> Any:
    """Return a channel for calls with raw bytes."""
    return channel


def unary(loader: LoaderUnderTest, request: bytes = b"x", **options: Any) -> Any:
    return raw(loader.channel).unary_unary(PREDICT)(request, metadata=MODEL, timeout=20, **options)


def streaming(loader: LoaderUnderTest, request: bytes = b"x") -> Any:
    return raw(loader.channel).unary_stream(STREAM)(request, metadata=MODEL, timeout=60)


def live(loader: LoaderUnderTest) -> Any:
    return loader.channel.stream_stream(LIVE)(metadata=MODEL, timeout=60)


async def read_all(call: Any) -> list[bytes]:
    return [message async for message in call]


async def refusal(running: Any) -> CorralError:
    with pytest.raises(aio.AioRpcError) as failed:
        await running
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return from_rpc_error(failed.value)


def assert_too_large(error: CorralError, side: str, size: int) -> None:
    assert error.reason == "MESSAGE_TOO_LARGE" and "--max-message-size" in error.message
    facts = {"side": side, "size": str(size), "limit": str(LIMIT), "setting": "max_message_size"}
    assert error.metadata == facts


async def test_requests_that_are_too_large(loader: LoaderUnderTest, bare: BareBackend) -> None:
    assert len(await unary(loader, b"x" * LIMIT)) == LIMIT
    size = LIMIT + 1
    assert_too_large(await refusal(unary(loader, b"x" * size)), "request", size)
    assert_too_large(await refusal(read_all(streaming(loader, b"x" * size))), "request", size)
    call = live(loader)
    await call.write(b"small")
    assert await call.read() == b"small"
    await call.write(b"x" * size)
    assert_too_large(await refusal(read_all_of(call)), "request", size)
    await eventually(lambda: idle(loader), what="the end of the leases")
    assert await unary(loader) == b"x"


async def read_all_of(call: Any) -> None:
    while await call.read() is not aio.EOF:
        pass


async def test_responses_that_are_too_large(loader: LoaderUnderTest, bare: BareBackend) -> None:
    size = LIMIT + 1

    async def one(request: bytes, context: Any) -> bytes:
        return b"x" * size

    async def many(requests: Any, context: Any) -> None:
        await context.write(b"small")
        await context.write(b"x" * size)

    bare.one, bare.many, bare.live = one, many, many
    assert_too_large(await refusal(unary(loader)), "response", size)
    for call in (streaming(loader), live(loader)):
        assert await call.read() == b"small"
        assert_too_large(await refusal(read_all_of(call)), "response", size)
    bare.one = bare.answer
    assert await unary(loader) == b"x"


async def test_far_too_large_requests_are_refused_by_grpc(
    loader: LoaderUnderTest, bare: BareBackend
) -> None:
    error = await refusal(unary(loader, b"x" * (5 * LIMIT)))
    assert "larger than max" in error.message


async def test_the_control_plane_takes_no_more_than_it_can(
    loader: LoaderUnderTest, bare: BareBackend
) -> None:
    """Control-plane messages are short: the gateway's larger limit does not apply to them."""
    with pytest.raises(aio.AioRpcError) as failed:
        await loader.control.GetModel(pb.GetModelRequest(name="m" * (2 * LIMIT)))
    assert_too_large(from_rpc_error(failed.value), "request", 2 * LIMIT + 5)


@pytest.mark.parametrize("who", ["backend", "client"])
async def test_a_slow_reader_holds_up_the_writer(
    loader: LoaderUnderTest, bare: BareBackend, who: str
) -> None:
    """Unread data stays with the sender, not in the loader's memory."""
    await unary(loader)
    memory = psutil.Process(loader.service.pid).memory_info().rss
    if who == "backend":
        bare.many = bare.flood
        call = streaming(loader)
        await call.read()
        count: Callable[[], int] = lambda: bare.written
    else:
        bare.live = bare.stall
        call = live(loader)
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await call.write(CHUNK)
                sent += 1

        writer = asyncio.ensure_future(send())
        count = lambda: sent
    seen: list[int] = []

    def stands_still() -> bool:
        seen.append(count())
        return len(seen) > 50 and seen[-50] == seen[-1] > 0

    await eventually(stands_still, what="the writer's being held up", timeout=30)
    # gRPC's windows: up to 8 MiB on each of the two connections, here and at the other end.
    assert count() * len(CHUNK) < 48 << 20
    assert psutil.Process(loader.service.pid).memory_info().rss - memory < 48 << 20
    call.cancel()
    if who == "client":
        await asyncio.wait([writer])
        assert writer.cancelled() or writer.exception() is not None
    async with asyncio.timeout(10):
        await bare.ended.wait()
    await eventually(lambda: idle(loader), what="the end of the lease")


async def test_what_the_gateway_adds_to_the_trailers(
    loader: LoaderUnderTest, bare: BareBackend
) -> None:
    async def fail(requests: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no", (("own", "1"),))

    call = unary(loader)
    await call
    first = dict(await call.trailing_metadata())
    instances = (await model(loader)).instances
    assert first["corral-instance"] == instances[0].uid
    assert float(first["corral-queue-ms"]) >= 0 and float(first["corral-load-ms"]) > 0
    stream = streaming(loader)
    await read_all(stream)
    bidirectional = live(loader)
    await bidirectional.done_writing()
    await read_all_of(bidirectional)
    answers = [
        dict(await stream.trailing_metadata()),
        dict(await bidirectional.trailing_metadata()),
    ]
    bare.one = bare.many = bare.live = fail
    for failing in (unary(loader), read_all(streaming(loader)), read_all(live(loader))):
        with pytest.raises(aio.AioRpcError) as failed:
            await failing
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        answers.append(dict(failed.value.trailing_metadata() or ()))
        assert answers[-1]["own"] == "1"
    for trailers in answers:
        assert trailers["corral-instance"] == instances[0].uid
        assert trailers["corral-queue-ms"] == trailers["corral-load-ms"] == "0"
        assert trailers["x-request-id"]


async def test_the_loaders_own_metadata_stay_here(
    loader: LoaderUnderTest, bare: BareBackend
) -> None:
    seen: list[tuple[str, str | bytes]] = []

    async def look(request: bytes, context: Any) -> bytes:
        seen.extend(tuple(pair) for pair in context.invocation_metadata())
        return request

    bare.one = look
    sent = (("b", "1"), ("a", "2"), ("a", "3"), ("c-bin", b"\0"), ("corral-client", "me"))
    await raw(loader.channel).unary_unary(PREDICT)(b"", metadata=(*MODEL, *sent), timeout=20)
    assert [pair for pair in seen if pair[0] in ("a", "b", "c-bin")] == list(sent[:4])
    assert not [key for key, _ in seen if key.startswith("corral-")]


async def test_asyncios_own_loop_does_as_well(loader: LoaderUnderTest) -> None:
    """For platforms without uvloop."""
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    await loader.start("--event-loop", "asyncio")
    libraries = {Path(each.path).name for each in psutil.Process(loader.service.pid).memory_maps()}
    assert not any(name.startswith(("uvloop", "loop.c")) for name in libraries)
    assert (await loader.data.Predict(prompt("x"), metadata=MODEL)).message
    stream = loader.data.PredictStream(FOREVER, metadata=MODEL)
    assert await stream.read()
    stream.cancel()
    await eventually(lambda: idle(loader), what="the end of the leases")
    assert await loader.service.stop() == 0


async def test_headers_come_before_the_first_message(
    loader: LoaderUnderTest, bare: BareBackend
) -> None:
    """A client may wait for the headers before it continues, even if they are empty."""

    async def begin(requests: Any, context: Any) -> None:
        await context.send_initial_metadata(metadata)
        await bare.answer_all(requests, context)

    bare.live = begin
    for metadata in ((), (("k", "v"),)):
        call = live(loader)
        async with asyncio.timeout(20):
            assert dict(await call.initial_metadata()).get("k") == dict(metadata).get("k")
        await call.write(b"x")
        assert await call.read() == b"x"
        await call.done_writing()
        assert await call.read() is aio.EOF


@pytest.mark.parametrize("kind", ["unary", "stream", "live"])
async def test_a_vanished_client_leaves_nothing_behind(
    loader: LoaderUnderTest, bare: BareBackend, kind: str
) -> None:
    bare.one = bare.many = bare.live = bare.stall
    async with aio.insecure_channel(
        loader.service.address, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        if kind == "unary":
            call: Any = raw(channel).unary_unary(PREDICT)(b"x", metadata=MODEL)
        elif kind == "stream":
            call = raw(channel).unary_stream(STREAM)(b"x", metadata=MODEL)
        else:
            call = channel.stream_stream(LIVE)(metadata=MODEL)
            await call.write(b"x")

        async def busy() -> bool:
            return not await idle(loader)

        await eventually(busy, what="the call")
    async with asyncio.timeout(10):
        await bare.ended.wait()
    await eventually(lambda: idle(loader), what="the end of the lease")


WATCHDOG = {"busy_timeout": 300_000_000, "interval": 20_000_000}
"""Nanoseconds."""
VANISHING = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
model = (("corral-model", "m"),)
calls = [channel.unary_stream(sys.argv[2])(b"x", metadata=model) for _ in range(8)]
for call in calls:
    next(call)
calls += [channel.unary_unary(sys.argv[3]).future(b"x", metadata=model) for _ in range(8)]
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("answers", ["well", "badly"])
async def test_clients_that_are_killed_leave_no_errors_in_the_log(
    loader: LoaderUnderTest, bare: BareBackend, answers: str
) -> None:
    """Neither during a write to them, nor when their answer comes too late."""
    killed, asked = asyncio.Event(), 0

    async def late(request: bytes, context: Any) -> bytes:
        nonlocal asked
        asked += 1
        await killed.wait()
        if answers == "badly":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no")
        return request

    async def stream(request: bytes, context: Any) -> None:
        nonlocal asked
        asked += 1
        while not killed.is_set():
            await context.write(CHUNK)
        await late(request, context)

    bare.one, bare.many = late, stream
    async with AsyncExitStack() as stack:
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", VANISHING, loader.service.address, STREAM, PREDICT,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        stack.push_async_callback(client.communicate)
        stack.callback(client.kill)
        assert client.stdout is not None
        async with asyncio.timeout(20):
            assert await client.stdout.readline() == b"open\n"
        await eventually(lambda: asked == 16, what="all calls")
        client.kill()
        killed.set()
    await eventually(lambda: idle(loader), what="the end of the leases")
    log = loader.service.log.read_text()
    assert "Traceback" not in log and "rror" not in log.replace("CancelledError", ""), log


async def test_a_quiet_conversation_is_not_stuck(
    loader: LoaderUnderTest, bare: BareBackend
) -> None:
    """While the client may still send, the call is not stuck; after the half-close it can be."""

    async def talk(requests: Any, context: Any) -> None:
        await bare.answer_all(requests, context)
        await bare.stall(requests, context)

    bare.live, bare.one = talk, bare.stall
    call = live(loader)
    for _ in range(3):
        await call.write(b"x")
        assert await call.read() == b"x"
    other = raw(loader.channel).unary_unary(PREDICT)(b"", metadata=named("n"), timeout=20)
    times = {f"watchdog_{name}": Duration(nanos=nanos) for name, nanos in WATCHDOG.items()}
    await change(loader, watchdog_busy=True, **times)
    for stuck in (other, call):
        with pytest.raises(aio.AioRpcError, match="no progress"):
            await (stuck if stuck is other else call.read())
        if stuck is other:  # it started later, so the conversation has been checked by now
            await call.write(b"y")
            assert await call.read() == b"y"
            await call.done_writing()
