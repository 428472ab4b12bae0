"""Behaviour of the gateway that no backend can observe from outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from services.common.config.settings import ServiceSettings
from services.common.errors import QueueFullError
from services.common.rpc.call_records import CallRecord
from services.common.rpc.mounts import AnyMount, GenericMount, Observe
from services.common.rpc.server import serving
from services.common.rpc.status import from_rpc_error
from services.loader.admission.meter import Caller
from services.loader.backends.catalog import Backend
from services.loader.gateway.backend_channel import GrpcConnection
from services.loader.gateway.call import Passage
from services.loader.gateway.gateway import Gateway
from services.loader.gateway.metadata import Heading, passed_back
from services.loader.gateway.methods import methods
from services.loader.instances.instance import Instance, Lease
from services.loader.models.catalog import ModelEntry
from tests.tools.waiting import eventually

LIVE = "/backend.Backend/AudioTranscriptionLive"
PREDICT = "/backend.Backend/Predict"


class Turnstile:
    """Admits calls when the test opens it, after a wait in a queue."""

    def __init__(self, address: str) -> None:
        self.instance = Instance(
            "u", 1, "m", Backend("fake", Path("/run.sh")), ModelEntry("m"), 0.0
        )
        self.instance.connect(GrpcConnection(address, "", max_message_size=1 << 20))
        self.callers: list[Caller] = []
        self.open = asyncio.Event()
        self.refusal: Exception | None = None
        self.position = 3

    def route(self, named: str | None, identity: str | None) -> str:
        return named or "m"

    async def acquire(self, name: str, caller: Caller) -> Lease:
        self.callers.append(caller)
        if self.position and caller.queued:
            caller.queued(self.position)
        await self.open.wait()
        if self.refusal:
            raise self.refusal
        lease = Lease(self.instance, lambda instance: None)
        lease.use()
        lease.queue_time, lease.load_time = 1.2345, 0.5
        return lease


class Backends(grpc.GenericRpcHandler):
    """Sends initial and trailing metadata, and records how the client's messages ended."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def service(self, details: Any) -> Any:
        if details.method == LIVE:
            return grpc.stream_stream_rpc_method_handler(self.live)
        return grpc.unary_unary_rpc_method_handler(self.one)

    async def one(self, request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("first", "1"),))
        context.set_trailing_metadata((("last", "2"),))
        if request == b"fail":
            await context.abort(grpc.StatusCode.ABORTED, "as told", (("last", "2"),))
        return request

    async def live(self, requests: Any, context: Any) -> None:
        try:
            while (message := await context.read()) is not aio.EOF:
                await context.write(message)
            with suppress(TimeoutError):
                # On a server too, gRPC ends a call's messages before it reports the cancellation.
                async with asyncio.timeout(0.2):
                    await asyncio.Event().wait()
            self.ends.append("half-closed")
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise


class World:
    """A gateway between a client and a backend."""

    def __init__(self, channel: Any, turnstile: Turnstile, backend: Backends) -> None:
        self.channel = channel
        self.turnstile = turnstile
        self.backend = backend
        self.records: list[CallRecord] = []

    def call_ended(self, record: CallRecord) -> None:
        self.records.append(record)

    def one(self, request: bytes = b"x", metadata: Any = ()) -> Any:
        return self.channel.unary_unary(PREDICT)(request, timeout=10, metadata=metadata)


@asynccontextmanager
async def world(position: int = 3) -> AsyncIterator[World]:
    backend, settings = Backends(), ServiceSettings(grace=0.5)
    mounts = [GenericMount(("backend.Backend",), backend)]
    async with serving(name="backend", settings=settings, mounts=mounts) as behind:
        turnstile = Turnstile(behind.address)
        turnstile.position = position
        gateway = Gateway(turnstile, max_message_size=1 << 20, cause_timeout=0.1)  # type: ignore[arg-type]
        channel: Any = None
        made = World(channel, turnstile, backend)
        front: list[AnyMount] = [gateway.mount(), Observe(made)]
        async with serving(name="gateway", settings=settings, mounts=front) as server:
            made.channel = aio.insecure_channel(server.address)
            yield made
            await made.channel.close()
        assert turnstile.instance.connection
        await turnstile.instance.connection.close()


async def test_a_call_that_waits_is_told_its_position_at_once() -> None:
    async with world() as here:
        stream = here.channel.stream_stream(LIVE)(timeout=10)
        # A unary call receives it as early, but grpc.aio holds it back until the answer arrives.
        assert dict(await stream.initial_metadata()) == {"corral-queue-position": "3"}
        assert not stream.done() and not here.backend.ends
        stream.cancel()
        here.turnstile.open.set()
        call = here.one()
        assert await call == b"x"
        assert dict(await call.initial_metadata()) == {"corral-queue-position": "3"}
        trailing = dict(await call.trailing_metadata())
        # Initial metadata was already sent, so the backend's arrives with the trailing metadata.
        assert trailing["first"] == "1" and trailing["last"] == "2"
        assert (trailing["corral-queue-ms"], trailing["corral-load-ms"]) == ("1234.5", "500.0")


async def test_a_call_that_waited_and_failed() -> None:
    async with world() as here:
        here.turnstile.open.set()
        with pytest.raises(aio.AioRpcError) as failed:
            await here.one(b"fail")
        assert failed.value.code() is grpc.StatusCode.ABORTED
        assert dict(failed.value.initial_metadata() or ())["corral-queue-position"] == "3"
        trailing = dict(failed.value.trailing_metadata() or ())
        assert trailing["first"] == "1" and trailing["corral-instance"] == "u"
        here.turnstile.refusal = QueueFullError("no place", retry_after=2.0)
        with pytest.raises(aio.AioRpcError) as refused:
            await here.one()
        error = from_rpc_error(refused.value)
        assert (error.reason, error.retry_after) == ("QUEUE_FULL", 2.0)
        assert "corral-instance" not in dict(refused.value.trailing_metadata() or ())


async def test_a_call_that_does_not_wait_is_passed_on_as_it_is() -> None:
    async with world(position=0) as here:
        here.turnstile.open.set()
        call = here.one()
        await call
        assert dict(await call.initial_metadata()) == {"first": "1"}
        assert "first" not in dict(await call.trailing_metadata())


async def test_who_calls_and_until_when() -> None:
    async with world() as here:
        here.turnstile.open.set()
        await here.one(metadata=(("corral-client", "team-1"),))
        await here.one()
        named, unnamed = here.turnstile.callers
        assert named.client == "team-1"
        assert unnamed.client.startswith(("ipv4:127.0.0.1:", "ipv6:"))
        left = (named.deadline or 0.0) - asyncio.get_running_loop().time()
        assert 0 < left <= 10.1  # gRPC sends it in tenths of a second, rounded up


async def test_a_client_that_leaves_while_it_waits() -> None:
    async with world() as here:
        call = here.one()
        await eventually(lambda: here.turnstile.callers, what="the call")
        call.cancel()
        await eventually(lambda: here.records, what="the end of the call")
        assert here.records[0].code == "CANCELLED"
        assert not here.turnstile.instance.leases


@pytest.mark.parametrize("end", ["half-closed", "cancelled"])
async def test_the_end_of_a_clients_messages(end: str) -> None:
    async with world(position=0) as here:
        here.turnstile.open.set()
        calls = []
        for _ in range(20):
            call = here.channel.stream_stream(LIVE)(timeout=10)
            await call.write(b"x")
            assert await call.read() == b"x"
            calls.append(call)
        for call in calls:
            if end == "cancelled":
                call.cancel()
            else:
                await call.done_writing()
                assert await call.read() is aio.EOF
        await eventually(lambda: len(here.backend.ends) == 20, what="the ends")
        assert set(here.backend.ends) == {end}
        await eventually(lambda: not here.turnstile.instance.leases, what="the end of the leases")
        await eventually(lambda: len(here.records) == 20, what="the records")
        assert {(each.kind, each.messages_in, each.messages_out) for each in here.records} == {
            ("stream_stream", 1, 1)
        }


class Client:
    """The client's side of a call whose messages were ended by the client, or by gRPC."""

    read_to_the_end = False

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return "test"

    async def read(self) -> Any:
        self.read_to_the_end = True
        return aio.EOF


class Writer:
    """The backend's side."""

    closed = False

    async def write(self, message: bytes) -> None:
        raise AssertionError("there is no message")

    async def done_writing(self) -> None:
        self.closed = True


@pytest.mark.parametrize("cancelled", [False, True])
async def test_the_end_of_a_cancelled_calls_messages_is_not_passed_on(*, cancelled: bool) -> None:
    """gRPC ends the messages shortly before it reports that the client cancelled."""
    client, writer, turnstile = Client(), Writer(), Turnstile("127.0.0.1:1")
    turnstile.open.set()
    method = methods()[LIVE]
    loader: Any = turnstile
    context: Any = client
    passage = Passage(method, context, loader, max_message_size=1, cause_timeout=0.1)
    lease = Lease(turnstile.instance, lambda instance: None)
    sending = asyncio.ensure_future(passage._send(writer, lease))
    await eventually(lambda: client.read_to_the_end, what="the end", interval=0)
    assert not writer.closed
    if cancelled:
        sending.cancel()
    await asyncio.wait([sending])
    assert writer.closed is not cancelled
    assert lease.progress < float("inf"), "it is the backend's turn"


def test_what_is_passed_on_and_back() -> None:
    heading = Heading(
        [
            ("a", "1"),
            ("authorization", "mine"),
            ("grpc-trace-bin", b"t"),
            ("grpc-timeout", "1S"),
            ("corral-model", "m"),
            ("corral-model", "n"),
            ("x-request-id", "r"),
            ("a", "2"),
        ]
    )
    assert heading.model() == "m" and heading.request_id == "r"
    keys = [("a", "1"), ("grpc-trace-bin", b"t"), ("x-request-id", "r"), ("a", "2")]
    assert heading.passed_on == keys
    back = (("grpc-status-details-bin", b"d"), ("grpc-accept-encoding", "gzip"), ("b", "1"))
    assert passed_back(back) == (back[0], back[2])
