"""Leases of direct clients at a real loader: what they prevent, and when they end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from corral.backend import backend_pb2_grpc
from corral.loader.v1 import loader_pb2 as pb
from services.common.rpc.status import from_rpc_error
from tests.tools.loader_calls import (
    MODEL,
    READY,
    UNLOADED,
    begin,
    load,
    model,
    named,
    prompt,
    refused,
    states,
    unload,
)
from tests.tools.running import LoaderUnderTest, eventually
from tests.tools.service import environment


def resolve(name: str = "m", lease: str = "", seconds: float | None = None) -> Any:
    request = pb.ResolveModelRequest(name=name, lease=lease)
    if seconds is not None:
        length = Duration()
        length.FromNanoseconds(int(seconds * 1e9))
        request.lease_duration.CopyFrom(length)
    return request


def hold(running: LoaderUnderTest, name: str = "m") -> Any:
    return running.control.HoldModel(pb.HoldModelRequest(name=name))


async def leases(running: LoaderUnderTest, name: str = "m") -> int:
    return sum(each.direct_leases for each in (await model(running, name)).instances)


async def no_leases(running: LoaderUnderTest) -> bool:
    return await leases(running) == 0


async def direct(found: pb.ResolveModelResponse, *, token: bool = True) -> Any:
    """Call the backend itself."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    metadata = (("authorization", f"Bearer {found.token}"),) if token else ()
    async with grpc.aio.insecure_channel(found.address, options=options) as channel:
        stub: Any = backend_pb2_grpc.BackendStub(channel)
        return await stub.Predict(prompt("x"), metadata=metadata, timeout=10)


async def test_resolve_call_renew_release(running: LoaderUnderTest) -> None:
    found = await running.control.ResolveModel(resolve())
    assert (await model(running)).state == READY
    assert found.advice == pb.ADVICE_KEEP and found.advice_message == ""
    assert (await direct(found)).message
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await direct(found, token=False)
    assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
    instance = (await model(running)).instances[0]
    assert (instance.direct_leases, instance.total_calls, instance.active_calls) == (1, 1, 0)
    again = await running.control.ResolveModel(resolve(lease=found.lease, seconds=100))
    assert (again.lease, again.token) == (found.lease, found.token)
    assert 60 < again.expire_time.seconds - found.expire_time.seconds <= 71
    for _ in range(2):
        await running.control.ReleaseLease(pb.ReleaseLeaseRequest(lease=found.lease))
    assert await leases(running) == 0
    error = await refused(running.control.ResolveModel(resolve(lease=found.lease)))
    assert error.reason == "LEASE_NOT_FOUND"


async def test_what_is_refused(loader: LoaderUnderTest) -> None:
    await begin(loader, "m", "other")
    await loader.start("--direct-leases", "1")
    for bad in (resolve(seconds=-1), resolve(seconds=0)):
        error = await refused(loader.control.ResolveModel(bad))
        assert error.violations[0].field == "lease_duration"
    assert (await states(loader))["m"] == UNLOADED
    assert (await refused(loader.control.ResolveModel(resolve("nobody")))).reason == (
        "MODEL_NOT_FOUND"
    )
    found = await loader.control.ResolveModel(resolve())
    error = await refused(loader.control.ResolveModel(resolve("other", found.lease)))
    assert error.violations[0].field == "lease"
    for call in (loader.control.ResolveModel(resolve("other")), hold(loader, "other").read()):
        error = await refused(call)
        assert error.reason == "TOO_MANY_LEASES" and error.retry_after
    error = await refused(loader.control.ReleaseLease(pb.ReleaseLeaseRequest()))
    assert error.violations[0].field == "lease"


async def test_a_lease_that_expires_frees_the_model(running: LoaderUnderTest) -> None:
    found = await running.control.ResolveModel(resolve(seconds=0.3))
    assert await leases(running) == 1
    await eventually(lambda: no_leases(running), what="the end of the lease")
    error = await refused(running.control.ResolveModel(resolve(lease=found.lease)))
    assert error.reason == "LEASE_NOT_FOUND"
    await running.control.UnloadModel(unload())


async def test_an_unload_waits_for_the_holder(running: LoaderUnderTest) -> None:
    holding = hold(running)
    first = (await holding.read()).resolution
    assert not first.HasField("expire_time")
    unloading = asyncio.ensure_future(running.control.UnloadModel(unload()))
    told = (await holding.read()).resolution
    assert told.advice == pb.ADVICE_MOVE and "request" in told.advice_message
    # A new caller waits for the next instance, which starts when this one is gone.
    next_one = hold(running)
    asked = asyncio.ensure_future(next_one.read())
    assert (await direct(told)).message
    assert not unloading.done() and not asked.done()
    holding.cancel()
    await unloading
    found = (await asked).resolution
    assert found.instance.generation == first.instance.generation + 1
    next_one.cancel()


async def test_a_holder_that_does_not_let_go_is_forced(loader: LoaderUnderTest) -> None:
    await begin(loader, "m")
    await loader.start("--drain-timeout", "300ms")
    holding = hold(loader)
    await holding.read()
    error = await refused(loader.control.UnloadModel(unload()))
    assert error.reason == "MODEL_BUSY" and "1 direct lease" in error.message
    assert (await holding.read()).resolution.advice == pb.ADVICE_MOVE
    assert (await holding.read()).resolution.advice == pb.ADVICE_KEEP
    await loader.control.UnloadModel(unload(force=True))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await holding.read()
    assert from_rpc_error(failed.value).reason == "MODEL_UNLOADED"
    assert (await model(loader)).last_unload.forced


async def test_a_crash_ends_the_lease_with_its_cause(running: LoaderUnderTest) -> None:
    holding = hold(running)
    found = (await holding.read()).resolution
    short = await running.control.ResolveModel(resolve())
    os.kill(found.instance.pid, signal.SIGKILL)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await holding.read()
    error = from_rpc_error(failed.value)
    assert error.reason == "BACKEND_CRASHED" and "SIGKILL" in error.message
    error = await refused(running.control.ResolveModel(resolve(lease=short.lease)))
    assert error.reason == "LEASE_NOT_FOUND"
    assert (await running.control.ResolveModel(resolve())).instance.pid != found.instance.pid


async def test_nothing_evicts_a_model_that_is_held(loader: LoaderUnderTest) -> None:
    await begin(loader, "m", "other")
    await loader.start(
        *("--max-active-backends", "1", "--lru-eviction-max-retries", "2"),
        *("--lru-eviction-retry-interval", "200ms", "--watchdog-idle"),
        *("--watchdog-idle-timeout", "100ms", "--watchdog-interval", "50ms"),
    )
    holding = hold(loader)
    assert (await holding.read()).resolution.advice == pb.ADVICE_KEEP
    error = await refused(loader.control.LoadModel(load("other")))
    assert error.reason == "NO_ROOM"
    assert (await states(loader))["m"] == READY
    told = (await holding.read()).resolution
    assert told.advice == pb.ADVICE_YIELD and "other" in told.advice_message
    assert (await holding.read()).resolution.advice == pb.ADVICE_KEEP
    # With a call waiting, releasing the lease is enough.
    loading = asyncio.ensure_future(loader.control.LoadModel(load("other")))
    assert (await holding.read()).resolution.advice == pb.ADVICE_YIELD
    holding.cancel()
    assert (await loading).model.state == READY


async def test_a_changed_configuration_waits_for_the_holder(running: LoaderUnderTest) -> None:
    holding = hold(running)
    first = (await holding.read()).resolution
    running.add_model("m", "fake", context_size=17)
    told = (await holding.read()).resolution
    assert told.advice == pb.ADVICE_YIELD and "changed" in told.advice_message
    assert (await direct(told)).message
    holding.cancel()

    async def reloaded() -> bool:
        found = await running.control.ResolveModel(resolve(seconds=0.05))
        return bool(found.instance.generation > first.instance.generation)

    await eventually(reloaded, what="the new configuration")


HOLDER = """
import sys, grpc, signal
from corral.loader.v1 import loader_pb2 as pb, loader_pb2_grpc
stub = loader_pb2_grpc.LoaderServiceStub(grpc.insecure_channel(sys.argv[1]))
for message in stub.HoldModel(pb.HoldModelRequest(name="m")):
    print(message.resolution.lease, flush=True)
"""


async def test_a_client_that_is_killed_holds_nothing(running: LoaderUnderTest) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, running.service.address),
        stdout=asyncio.subprocess.PIPE,
        env=environment(PYTHONPATH=":".join(sys.path)),
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline()
    assert await leases(running) == 1
    process.kill()
    await process.communicate()
    await eventually(lambda: no_leases(running), timeout=2, what="the end of the lease")
    await running.control.UnloadModel(unload())


async def test_a_stop_of_the_loader_ends_leases_and_backends(running: LoaderUnderTest) -> None:
    holding = hold(running)
    await holding.read()
    assert await running.service.stop() == 0
    assert await holding.read() is grpc.aio.EOF


async def test_the_gateway_and_direct_clients_share_one_instance(running: LoaderUnderTest) -> None:
    running.behave("fake", load_seconds=0.3)
    found, _, third = await asyncio.gather(
        running.control.ResolveModel(resolve()),
        running.data.Predict(prompt("x"), metadata=MODEL),
        hold(running).read(),
    )
    assert found.instance.uid == third.resolution.instance.uid
    assert running.notes("fake").count("load m.bin") == 1


async def test_a_drain_tells_the_holders(running: LoaderUnderTest) -> None:
    holding = hold(running)
    await holding.read()
    draining = asyncio.ensure_future(running.control.Drain(pb.DrainRequest()))
    assert (await holding.read()).resolution.advice == pb.ADVICE_MOVE
    holding.cancel()
    assert (await draining).cut_calls == 0
    assert (await refused(hold(running).read())).reason == "SHUTTING_DOWN"


async def test_an_alias_is_leased_under_either_name(running: LoaderUnderTest) -> None:
    (running.models / "nick.yaml").write_text("name: nick\nalias: m\n")
    found = await running.control.ResolveModel(resolve("nick"))
    assert (await running.control.ResolveModel(resolve("m", found.lease))).lease == found.lease
    await running.data.Predict(prompt("x"), metadata=named("nick"))
