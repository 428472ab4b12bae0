"""Interceptors and errors over real connections, for all four kinds of RPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog
from structlog.testing import capture_logs

from services.common.config.settings import ServiceSettings
from services.common.errors import (
    CorralError,
    DeadlineError,
    FieldViolation,
    InternalError,
    ModelNotFoundError,
    QueueFullError,
    Resource,
    UnknownRemoteError,
)
from services.common.rpc import status
from services.common.rpc.call_records import CallRecord
from services.common.rpc.channels import call, open_channel
from services.common.rpc.interceptors import request_id
from services.common.rpc.mounts import GenericMount, Observe
from services.common.rpc.server import serving
from tests.tools.raw_service import DEADLINE, KINDS, Raw, Recorder, World, failing


@pytest.fixture
async def world() -> AsyncIterator[World]:
    raw, recorder = Raw(), Recorder()
    settings = ServiceSettings(grace=0.5)
    mounts: list[GenericMount | Observe] = [GenericMount(("test.Raw",), raw), Observe(recorder)]
    async with (
        serving(name="test", settings=settings, mounts=mounts) as server,
        open_channel(server.address) as channel,
    ):
        yield World(channel, raw, recorder)


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
    # The streams had sent a message before they failed.
    assert record.messages_out == {"unary_stream": 1, "stream_stream": 2}.get(kind, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_client_gets_only_an_id_for_an_unexpected_error(world: World, kind: str) -> None:
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
    trailing: Any = caught.value.trailing_metadata()
    assert ("k", "v") in tuple(trailing)
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
    trailing: Any = caught.value.trailing_metadata()
    assert ("last", "2") in tuple(trailing)
    assert ("x-request-id", "r-1") in tuple(trailing)
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
    # And the server still works.
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
    """The handler is not awaiting anything of its own then, so no exception is raised in it."""

    async def flood(requests: Any, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            world.raw.closed.set()

    world.raw.many = flood  # type: ignore[method-assign]
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
    mounts: list[GenericMount | Observe] = [
        GenericMount(("test.Raw",), raw),
        Observe(Broken()),
        Observe(recorder),
    ]
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
        health: Any = world.channel.unary_unary("/grpc.health.v1.Health/Check")
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


async def test_cancelling_the_caller_cancels_the_call(world: World) -> None:
    started = asyncio.Event()

    async def act(context: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    world.raw.act = act
    task: asyncio.Task[Any] = asyncio.create_task(
        call(world.channel.unary_unary("/test.Raw/unary_unary"), b"x", timeout=60)
    )
    async with asyncio.timeout(DEADLINE):
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await world.raw.closed.wait()
    assert (await world.recorder.next()).code == "CANCELLED"
