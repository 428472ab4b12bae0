"""Interceptors, errors and channels over real connections, for all four kinds of RPC."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc import aio
from structlog.testing import capture_logs

from corral.backend import backend_pb2, backend_pb2_grpc
from services.common import status
from services.common.calls import CallRecord
from services.common.channels import call, open_channel
from services.common.config import ServiceSettings
from services.common.errors import (
    CorralError,
    DeadlineError,
    FieldViolation,
    InternalError,
    ModelNotFoundError,
    NotImplementedYetError,
    QueueFullError,
    Resource,
    ServiceUnreachableError,
    UnknownRemoteError,
)
from services.common.interceptors import request_id
from services.common.server import GenericMount, Mount, Observe, serving

KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
DEADLINE = 5.0


class Raw(grpc.GenericRpcHandler):
    """Serves `/test.Raw/<kind>` with bytes; what each call does is decided by the test."""

    def __init__(self) -> None:
        self.act: Callable[[Any], Any] = self.echo
        self.closed = asyncio.Event()
        self.sent_trailing: tuple[tuple[str, str], ...] = ()

    def service(self, details: Any) -> Any:
        kind = details.method.rpartition("/")[2]
        if details.method != f"/test.Raw/{kind}" or kind not in KINDS:
            return None
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(self.many if kind.endswith("stream") else self.one)

    async def echo(self, context: Any) -> None:
        return None

    async def many(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        try:
            if isinstance(requests, bytes):
                yield requests
            else:
                async for request in requests:
                    yield request
            await self.act(context)
        finally:
            # A handler that gives something back takes a moment for it.
            await asyncio.sleep(0)
            self.closed.set()

    async def one(self, requests: Any, context: Any) -> bytes:
        try:
            data = requests if isinstance(requests, bytes) else b""
            if not data:
                async for request in requests:
                    data += request
            await self.act(context)
            return data
        finally:
            self.closed.set()


class Recorder:
    def __init__(self) -> None:
        self.records: list[CallRecord] = []
        self.changed = asyncio.Event()

    def call_ended(self, record: CallRecord) -> None:
        self.records.append(record)
        self.changed.set()

    async def next(self) -> CallRecord:
        async with asyncio.timeout(DEADLINE):
            while not self.records:
                self.changed.clear()
                await self.changed.wait()
        return self.records.pop(0)


class World:
    """A server with the raw service, and a channel to it."""

    def __init__(self, channel: aio.Channel, raw: Raw, recorder: Recorder) -> None:
        self.channel = channel
        self.raw = raw
        self.recorder = recorder

    def start(self, kind: str, *, messages: int = 2, **options: Any) -> Any:
        options.setdefault("timeout", DEADLINE)
        method = getattr(self.channel, kind)(f"/test.Raw/{kind}")
        if kind.startswith("unary"):
            return method(b"x", **options)

        async def requests() -> AsyncIterator[bytes]:
            for _ in range(messages):
                yield b"x"

        return method(requests(), **options)

    async def finish(self, kind: str, **options: Any) -> tuple[list[bytes], Any]:
        running = self.start(kind, **options)
        if kind.endswith("unary"):
            return [await running], running
        return [response async for response in running], running


@pytest.fixture
async def world() -> AsyncIterator[World]:
    raw, recorder = Raw(), Recorder()
    settings = ServiceSettings(grace=0.5)
    mounts = [GenericMount(("test.Raw",), raw), Observe(recorder)]
    async with (
        serving(name="test", settings=settings, mounts=mounts) as server,
        open_channel(server.address) as channel,
    ):
        yield World(channel, raw, recorder)


def failing(error: BaseException) -> Callable[[Any], Any]:
    async def act(context: Any) -> None:
        raise error

    return act


def facts(error: CorralError) -> tuple[object, ...]:
    return (
        type(error),
        str(error),
        error.metadata,
        error.retry_after,
        error.resource,
        error.violations,
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_is_recorded(world: World, kind: str) -> None:
    responses, _ = await world.finish(kind)
    record = await world.recorder.next()
    assert (record.method, record.kind, record.code) == (f"/test.Raw/{kind}", kind, "OK")
    assert record.messages_in == (1 if kind.startswith("unary") else 2)
    assert record.messages_out == len(responses)
    assert 0 < record.duration < DEADLINE
    assert record.peer.startswith(("ipv4:127.0.0.1:", "ipv6:"))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_domain_error_goes_over_the_wire_and_back(world: World, kind: str) -> None:
    sent = QueueFullError(
        "100 callers wait already: é\n%",
        metadata={"queued": "100"},
        retry_after=0.75,
        resource=Resource("model", "phi"),
        violations=[FieldViolation("model", "is busy")],
    )
    world.raw.act = failing(sent)
    with pytest.raises(grpc.RpcError) as caught:
        await world.finish(kind)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert facts(status.from_rpc_error(caught.value)) == facts(sent)
    record = await world.recorder.next()
    assert record.code == "RESOURCE_EXHAUSTED"
    # The streams had sent something before they failed.
    assert record.messages_out == {"unary_stream": 1, "stream_stream": 2}.get(kind, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unexpected_error_tells_the_client_nothing_but_an_id(
    world: World, kind: str
) -> None:
    world.raw.act = failing(KeyError("secret"))
    with capture_logs() as lines, pytest.raises(grpc.RpcError) as caught:
        await world.finish(kind, metadata=(("x-request-id", "r-77"),))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    error = status.from_rpc_error(caught.value)
    assert isinstance(error, InternalError)
    assert error.metadata == {"request_id": "r-77"}
    assert "secret" not in str(caught.value)
    (line,) = [line for line in lines if line["event"] == "unexpected error in a handler"]
    assert isinstance(line["exc_info"], KeyError)
    assert (await world.recorder.next()).code == "INTERNAL"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handlers_own_abort_is_left_alone(world: World, kind: str) -> None:
    async def act(context: Any) -> None:
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "past the end", (("k", "v"),))

    world.raw.act = act
    with pytest.raises(grpc.RpcError) as caught:
        await world.finish(kind)
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert caught.value.details() == "past the end"
    assert ("k", "v") in tuple(caught.value.trailing_metadata())
    error = status.from_rpc_error(caught.value)
    assert isinstance(error, UnknownRemoteError)
    assert error.code == "OUT_OF_RANGE"
    assert (await world.recorder.next()).code == "OUT_OF_RANGE"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_code_that_a_handler_sets_is_recorded(world: World, kind: str) -> None:
    async def act(context: Any) -> None:
        context.set_code(grpc.StatusCode.ALREADY_EXISTS)
        context.set_details("twice")

    world.raw.act = act
    with pytest.raises(grpc.RpcError) as caught:
        await world.finish(kind)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert (await world.recorder.next()).code == "ALREADY_EXISTS"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handlers_metadata_stay_beside_ours(world: World, kind: str) -> None:
    async def act(context: Any) -> None:
        if kind.endswith("unary"):
            await context.send_initial_metadata((("first", "1"),))
        context.set_trailing_metadata((("last", "2"),))

    world.raw.act = act
    _, running = await world.finish(kind, metadata=(("x-request-id", "r-1"),))
    if kind.endswith("unary"):
        assert ("first", "1") in tuple(await running.initial_metadata())
    trailing = tuple(await running.trailing_metadata())
    assert ("last", "2") in trailing
    assert ("x-request-id", "r-1") in trailing
    assert (await world.recorder.next()).request_id == "r-1"


async def test_an_error_keeps_the_trailers_that_the_handler_had_set(world: World) -> None:
    async def act(context: Any) -> None:
        context.set_trailing_metadata((("last", "2"),))
        raise ModelNotFoundError.of("phi")

    world.raw.act = act
    with pytest.raises(grpc.RpcError) as caught:
        await world.finish("unary_unary", metadata=(("x-request-id", "r-1"),))
    trailing = tuple(caught.value.trailing_metadata())
    assert ("last", "2") in trailing
    assert ("x-request-id", "r-1") in trailing
    assert isinstance(status.from_rpc_error(caught.value), ModelNotFoundError)


@pytest.mark.parametrize("given", ["", "x" * 129])
async def test_a_bad_request_id_is_replaced(world: World, given: str) -> None:
    _, running = await world.finish("unary_unary", metadata=(("x-request-id", given),))
    trailing = dict(await running.trailing_metadata())
    assert len(trailing["x-request-id"]) == 32
    assert trailing["x-request-id"] == (await world.recorder.next()).request_id


def test_which_request_ids_are_taken() -> None:
    assert request_id((("x-request-id", "a b/c"),)) == "a b/c"
    for bad in ("", "a\nb", "é", "x" * 129):
        assert request_id((("x-request-id", bad),)) != bad
    assert request_id(()) != request_id(())
    assert len(request_id(None)) == 32


async def test_the_request_id_is_on_the_handlers_log_lines(world: World) -> None:
    seen: list[Any] = []

    async def act(context: Any) -> None:
        seen.append(structlog.contextvars.get_contextvars().get("request_id"))

    world.raw.act = act
    ids = [f"r-{number}" for number in range(20)]
    await asyncio.gather(
        *(world.finish("unary_stream", metadata=(("x-request-id", one),)) for one in ids)
    )
    assert sorted(seen) == sorted(ids)
    assert "request_id" not in structlog.contextvars.get_contextvars()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_cancels(world: World, kind: str) -> None:
    started = asyncio.Event()

    async def act(context: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    world.raw.act = act
    running = world.start(kind, timeout=60)
    async with asyncio.timeout(DEADLINE):
        await started.wait()
        running.cancel()
        await world.raw.closed.wait()
    record = await world.recorder.next()
    assert (record.code, record.kind) == ("CANCELLED", kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_that_answers_a_cancel_with_an_error(
    world: World, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    started = asyncio.Event()

    async def act(context: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise QueueFullError("left the queue") from None

    world.raw.act = act
    running = world.start(kind, timeout=60)
    async with asyncio.timeout(DEADLINE):
        await started.wait()
        running.cancel()
        await world.raw.closed.wait()
    assert (await world.recorder.next()).code == "RESOURCE_EXHAUSTED"
    # And the server is none the worse for it.
    world.raw.act = world.raw.echo
    await world.finish(kind)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_deadline(world: World, kind: str) -> None:
    async def act(context: Any) -> None:
        await asyncio.Event().wait()

    world.raw.act = act
    with pytest.raises(grpc.RpcError) as caught:
        await world.finish(kind, timeout=0.1)
    assert isinstance(status.from_rpc_error(caught.value), DeadlineError)
    async with asyncio.timeout(DEADLINE):
        await world.raw.closed.wait()
    assert (await world.recorder.next()).code == "DEADLINE_EXCEEDED"


async def test_a_client_that_goes_away_while_the_handler_writes(world: World) -> None:
    """The handler is not awaiting anything of its own then, so nothing is raised into it."""

    async def flood(requests: Any, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            world.raw.closed.set()

    world.raw.many = flood  # type: ignore[method-assign, assignment]
    running = world.start("unary_stream", timeout=60)
    await running.read()
    running.cancel()
    async with asyncio.timeout(DEADLINE):
        await world.raw.closed.wait()
    record = await world.recorder.next()
    assert record.code == "CANCELLED"
    assert record.messages_out > 0


async def test_a_handler_that_writes_instead_of_yielding(world: World) -> None:
    async def write(requests: Any, context: Any) -> None:
        await context.write(b"1")
        await context.write(b"2")
        if requests == b"x":
            raise ModelNotFoundError.of("phi")

    world.raw.many = write  # type: ignore[method-assign, assignment]
    responses, _ = await world.finish("stream_stream")
    assert responses == [b"1", b"2"]
    with pytest.raises(grpc.RpcError) as caught:
        await world.finish("unary_stream")
    assert isinstance(status.from_rpc_error(caught.value), ModelNotFoundError)


async def test_an_observer_that_fails_is_reported_once_and_does_no_harm() -> None:
    class Broken:
        def call_ended(self, record: CallRecord) -> None:
            raise RuntimeError("no")

    raw, recorder = Raw(), Recorder()
    mounts = [GenericMount(("test.Raw",), raw), Observe(Broken()), Observe(recorder)]
    with capture_logs() as lines:
        async with (
            serving(name="test", settings=ServiceSettings(), mounts=mounts) as server,
            open_channel(server.address) as channel,
        ):
            world = World(channel, raw, recorder)
            for _ in range(3):
                assert (await world.finish("unary_unary"))[0] == [b"x"]
    assert len(recorder.records) == 3
    assert [line["event"] for line in lines].count("call observer failed") == 1


async def test_the_access_log(world: World) -> None:
    with capture_logs() as lines:
        await world.finish("unary_unary")
        for error in (ModelNotFoundError.of("x"), QueueFullError("x"), KeyError("x")):
            world.raw.act = failing(error)
            with pytest.raises(grpc.RpcError):
                await world.finish("unary_unary")
        health = world.channel.unary_unary("/grpc.health.v1.Health/Check")
        await health(b"", timeout=DEADLINE)
    calls = [(line["log_level"], line["code"]) for line in lines if line["event"] == "call"]
    assert calls == [
        ("info", "OK"),
        ("info", "NOT_FOUND"),
        ("warning", "RESOURCE_EXHAUSTED"),
        ("error", "INTERNAL"),
        ("debug", "OK"),
    ]


async def test_unknown_methods_stay_unimplemented(world: World) -> None:
    with pytest.raises(UnknownRemoteError) as caught:
        await call(world.channel.unary_unary("/test.Raw/nothing"), b"", timeout=DEADLINE)
    assert caught.value.code == "UNIMPLEMENTED"


class Backend(backend_pb2_grpc.BackendServicer):
    """A generated servicer, for what the raw one can not show."""

    def __init__(self) -> None:
        self.failures = 0
        self.calls = 0

    async def Health(self, request: Any, context: Any) -> backend_pb2.Reply:
        self.calls += 1
        if self.calls <= self.failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return backend_pb2.Reply(message=b"OK")

    async def Predict(self, request: Any, context: Any) -> backend_pb2.Reply:
        return backend_pb2.Reply(message=b"x" * request.Tokens)

    async def PredictStream(self, request: Any, context: Any) -> AsyncIterator[backend_pb2.Reply]:
        yield backend_pb2.Reply(message=b"1")
        raise ModelNotFoundError.of("phi")


@contextlib.asynccontextmanager
async def backend(
    listen: str = "127.0.0.1:0",
) -> AsyncIterator[tuple[Backend, str]]:
    servicer = Backend()
    mount = Mount(
        "backend.Backend",
        lambda server: backend_pb2_grpc.add_BackendServicer_to_server(servicer, server),
    )
    settings = ServiceSettings(listen=listen, grace=0.5)
    async with serving(name="test", settings=settings, mounts=[mount]) as server:
        yield servicer, server.address


async def test_generated_code_works_as_well(tmp_path: Path) -> None:
    async with (
        backend(f"unix:{tmp_path}/s") as (_, address),
        open_channel(address) as channel,
    ):
        stub = backend_pb2_grpc.BackendStub(channel)
        stream = stub.PredictStream(backend_pb2.PredictOptions(), timeout=DEADLINE)
        got = []
        with pytest.raises(grpc.RpcError) as caught:
            while True:
                got.append((await stream.read()).message)
        assert got == [b"1"]
        assert isinstance(status.from_rpc_error(caught.value), ModelNotFoundError)
        with pytest.raises(NotImplementedYetError, match="/backend.Backend/LoadModel"):
            await call(stub.LoadModel, backend_pb2.ModelOptions(), timeout=DEADLINE)


async def test_messages_up_to_the_limit_and_not_beyond() -> None:
    async with backend() as (_, address), open_channel(address) as channel:
        stub = backend_pb2_grpc.BackendStub(channel)
        size = 20 * 1024 * 1024
        reply = await call(stub.Predict, backend_pb2.PredictOptions(Tokens=size), timeout=DEADLINE)
        assert len(reply.message) == size
        async with open_channel(address, max_message_size=1024) as narrow:
            with pytest.raises(UnknownRemoteError) as caught:
                await call(
                    backend_pb2_grpc.BackendStub(narrow).Predict,
                    backend_pb2.PredictOptions(Tokens=2048),
                    timeout=DEADLINE,
                )
        assert caught.value.code == "RESOURCE_EXHAUSTED"


async def test_only_the_calls_that_are_named_are_tried_again() -> None:
    async with backend() as (servicer, address):
        servicer.failures = 1
        async with open_channel(address, retry=["/backend.Backend/Health"]) as channel:
            stub = backend_pb2_grpc.BackendStub(channel)
            reply = await call(stub.Health, backend_pb2.HealthMessage(), timeout=DEADLINE)
            assert reply.message == b"OK"
            assert servicer.calls == 2
        servicer.calls = 0
        async with open_channel(address, retry=["/backend.Backend/Predict"]) as channel:
            stub = backend_pb2_grpc.BackendStub(channel)
            with pytest.raises(ServiceUnreachableError, match="not yet"):
                await call(stub.Health, backend_pb2.HealthMessage(), timeout=DEADLINE)


async def test_nobody_there(tmp_path: Path) -> None:
    async with open_channel(f"unix:{tmp_path}/none") as channel:
        stub = backend_pb2_grpc.BackendStub(channel)
        with pytest.raises(ServiceUnreachableError):
            await call(stub.Health, backend_pb2.HealthMessage(), timeout=DEADLINE)


async def test_a_server_that_comes_late_is_found_at_once(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/late"
    loop = asyncio.get_running_loop()
    async with open_channel(address) as channel:
        stub = backend_pb2_grpc.BackendStub(channel)
        with pytest.raises(ServiceUnreachableError):
            await call(stub.Health, backend_pb2.HealthMessage(), timeout=DEADLINE)
        async with backend(address):
            began = loop.time()
            await call(
                stub.Health, backend_pb2.HealthMessage(), timeout=DEADLINE, wait_for_ready=True
            )
            # gRPC's default backoff would take a second.
            assert loop.time() - began < 0.8


async def test_cancelling_the_caller_cancels_the_call(world: World) -> None:
    started = asyncio.Event()

    async def act(context: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    world.raw.act = act
    task = asyncio.create_task(
        call(world.channel.unary_unary("/test.Raw/unary_unary"), b"x", timeout=60)
    )
    async with asyncio.timeout(DEADLINE):
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await world.raw.closed.wait()
    assert (await world.recorder.next()).code == "CANCELLED"
