"""A service's process from start to exit: ready line, addresses, signals, drain, exit codes."""

import asyncio
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.config.settings import ServiceSettings
from services.common.process.listen_address import AddressInUseError, StartError
from services.common.rpc.channels import open_channel
from services.common.rpc.mounts import GenericMount
from services.common.rpc.server import serving
from tests.tools.service import ROOT, announced, environment

DEADLINE = 10.0

TOY = textwrap.dedent('''
    """A service made for these tests: what it does is in the name of the method."""
    import asyncio, sys, time
    from typing import ClassVar
    import grpc
    from services.common.config.settings import ServiceSettings
    from services.common.errors import ModelConfigError
    from services.common.rpc.mounts import GenericMount
    from services.common.rpc.service import run_service

    class ToySettings(ServiceSettings):
        service: ClassVar[str] = "toy"
        fail: str = ""

    async def count(request, context):
        for number in range(int(request)):
            yield b"%d" % number
            await asyncio.sleep(0.05)

    async def hang(request, context):
        yield b"hanging"
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            name = details.method.rpartition("/")[2]
            if name == "Count":
                return grpc.unary_stream_rpc_method_handler(count)
            if name == "Hang":
                return grpc.unary_stream_rpc_method_handler(hang)
            return None

    async def build(settings, stack, health):
        assert not sys.stdin.isatty()
        for name in ("first", "second"):
            stack.callback(lambda name=name: print("closed", name, file=sys.stderr))
        if settings.fail == "known":
            raise ModelConfigError("phi.yaml: line 3 is\\nwrong")
        if settings.fail == "bug":
            raise KeyError("oops")
        if settings.fail == "slow":
            print("building", file=sys.stderr, flush=True)
            await asyncio.Event().wait()
        if settings.fail == "close":
            stack.callback(time.sleep, 60)
        return [GenericMount(("toy.Toy",), Handler())]

    if __name__ == "__main__":
        sys.exit(run_service(ToySettings, build))
''')


class Process:
    """A running toy service."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.address = ""

    async def ready(self) -> None:
        self.address = await announced(self.process, "toy")

    async def line(self, stream: Any) -> str:
        async with asyncio.timeout(DEADLINE):
            return str((await stream.readline()).decode())

    async def end(self) -> tuple[int, str, str]:
        async with asyncio.timeout(DEADLINE):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


@pytest.fixture
async def toy(tmp_path: Path) -> AsyncIterator[Any]:
    script = tmp_path / "toy.py"
    script.write_text(TOY)
    started: list[Process] = []

    async def start(*flags: str, listen: str = "127.0.0.1:0") -> Process:
        path = f"{ROOT}:{ROOT}/sdk/python"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            f"--listen={listen}",
            *flags,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(PYTHONPATH=path, CORRAL_HOME=str(tmp_path)),
        )
        started.append(Process(process))
        return started[-1]

    yield start
    for one in started:
        if one.process.returncode is None:
            one.process.kill()
            await one.process.communicate()


def count(channel: aio.Channel, number: int) -> Any:
    call: Any = channel.unary_stream("/toy.Toy/Count")
    return call(b"%d" % number, timeout=60)


async def test_sigterm_lets_a_stream_finish(toy: Any) -> None:
    process = await toy()
    await process.ready()
    assert int(process.address.rpartition(":")[2]) > 0
    async with open_channel(process.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="toy.Toy"), timeout=60)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            timeout=60
        )
        await reflected.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await reflected.read()
        stream = count(channel, 12)
        assert await stream.read() == b"0"
        process.process.send_signal(signal.SIGTERM)
        # Health changes first, and neither it nor an open reflection stream delays the stop.
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.read() is aio.EOF
        assert [await stream.read() for _ in range(11)] == [b"%d" % n for n in range(1, 12)]
        assert await stream.read() is aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
    code, out, err = await process.end()
    assert (code, out) == (0, "")
    # Components close after the drain, in reverse order.
    assert err.index("closed second") < err.index("closed first")
    assert "Traceback" not in err


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_skips_the_grace(toy: Any, second: signal.Signals) -> None:
    process = await toy("--grace=60s")
    await process.ready()
    async with open_channel(process.address) as channel:
        stream = count(channel, 10000)
        assert await stream.read() == b"0"
        process.process.send_signal(signal.SIGTERM)
        while "stopping" not in await process.line(process.process.stderr):
            pass
        assert await stream.read() == b"1"
        process.process.send_signal(second)
        code, _, err = await process.end()
        assert code == 0
        assert "stopping without grace" in err
        with pytest.raises(grpc.RpcError):
            while True:
                await stream.read()


async def test_the_grace_has_an_end(toy: Any) -> None:
    process = await toy("--grace=200ms")
    await process.ready()
    async with open_channel(process.address) as channel:
        stream = count(channel, 10000)
        assert await stream.read() == b"0"
        process.process.send_signal(signal.SIGINT)
        assert (await process.end())[0] == 0


@pytest.mark.parametrize("where", ["handler", "component"])
async def test_a_stop_that_hangs_logs_where_and_ends(toy: Any, where: str) -> None:
    flags = ["--fail=close"] if where == "component" else []
    process = await toy("--grace=100ms", "--stop-timeout=300ms", *flags)
    await process.ready()
    async with open_channel(process.address) as channel:
        if where == "handler":
            hang: Any = channel.unary_stream("/toy.Toy/Hang")
            stream = hang(b"", timeout=60)
            assert await stream.read() == b"hanging"
        process.process.send_signal(signal.SIGTERM)
        code, _, err = await process.end()
    assert code == 1
    assert "the stop hangs; giving up" in err
    assert ("toy.py" in err) and ((" hang" in err) if where == "handler" else ("aclose" in err))


async def test_a_signal_while_it_still_starts(toy: Any) -> None:
    process = await toy("--fail=slow")
    while "building" not in await process.line(process.process.stderr):
        pass
    process.process.send_signal(signal.SIGTERM)
    code, out, err = await process.end()
    assert (code, out) == (0, "")
    assert "closed first" in err


async def test_failures_are_one_line(toy: Any) -> None:
    code, out, err = await (await toy("--fail=known")).end()
    assert (code, out) == (1, "")
    assert "corral-toy: phi.yaml: line 3 is wrong\n" in err
    assert "closed first" in err
    code, _, err = await (await toy("--fail=bug")).end()
    assert code == 1
    assert "corral-toy: KeyError: 'oops'\n" in err
    assert "Traceback" not in err
    code, _, err = await (await toy("--fail=bug", "--log-level=debug")).end()
    assert "Traceback" in err
    code, _, err = await (await toy("--grace=soon", "--nonsense")).end()
    assert code == 2
    assert err.count("corral-toy: ") == 2


async def test_a_port_that_is_taken(toy: Any) -> None:
    process = await toy()
    await process.ready()
    code, out, err = await (await toy(listen=process.address)).end()
    assert (code, out) == (1, "")
    assert f"{process.address} is in use" in err
    assert "choose another with --listen" in err
    assert err.count("\n") == 3, err


async def test_a_unix_socket_is_guarded_replaced_and_removed(toy: Any, tmp_path: Path) -> None:
    path = tmp_path / "run" / "toy.sock"
    process = await toy(listen=f"unix:{path}")
    await process.ready()
    assert process.address == f"unix:{path}"
    code, _, err = await (await toy(listen=f"unix:{path}")).end()
    assert code == 1
    assert "is in use by a running process" in err
    async with open_channel(process.address) as channel:
        assert [response async for response in count(channel, 1)] == [b"0"]
    process.process.kill()
    await process.end()
    assert path.is_socket()
    again = await toy(listen=f"unix:{path}")
    await again.ready()
    again.process.send_signal(signal.SIGTERM)
    assert (await again.end())[0] == 0
    assert not path.exists()


async def test_a_closed_stdout_is_no_reason_not_to_serve(toy: Any) -> None:
    process = await toy("--log-level=debug")
    process.process.stdout._transport.close()
    async with asyncio.timeout(DEADLINE):
        while "health changed" not in await process.line(process.process.stderr):
            pass
    process.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(DEADLINE):
        assert await process.process.wait() == 0


class Nothing(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        return None


async def serve(listen: str, mounts: Sequence[Any] = ()) -> str:
    settings = ServiceSettings(listen=listen, grace=0.2)
    async with serving(name="test", settings=settings, mounts=mounts) as server:
        return server.address


async def test_addresses_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StartError, match="is not a socket"):
        await serve(f"unix:{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(StartError, match="cannot be resolved"):
        await serve("no-such-host.invalid:1234")
    with pytest.raises(StartError, match="no such address"):
        await serve("192.0.2.1:1234")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(AddressInUseError, match="in use"),
    ):
        await serve(f"127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
async def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert (await serve("[::1]:0")).startswith("[::1]:")


async def test_a_port_can_be_taken_again_at_once() -> None:
    address = await serve("127.0.0.1:0")
    assert await serve(address) == address


async def test_reflection_channelz_and_health_know_every_service() -> None:
    settings = ServiceSettings(grace=0.2)
    mounts = [GenericMount(("test.One", "test.Two"), Nothing())]
    async with (
        serving(name="test", settings=settings, mounts=mounts) as server,
        open_channel(server.address) as channel,
    ):
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=DEADLINE
        )
        listed = (await reflected.read()).list_services_response.service
        assert {"test.One", "test.Two", "grpc.health.v1.Health"} <= {one.name for one in listed}
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "test.One", "test.Two"):
            reply = await health.Check(
                health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE
            )
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        servers = await channelz_pb2_grpc.ChannelzStub(channel).GetServers(
            channelz_pb2.GetServersRequest(), timeout=DEADLINE
        )
        assert servers.server
