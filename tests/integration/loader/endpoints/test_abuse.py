"""What clients of a model endpoint must not be able to do to the loader, over raw sockets."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from hpack import Encoder
from hyperframe.frame import (
    DataFrame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from services.loader.endpoints.http2 import PREFACE
from tests.tools.loader_calls import UNLOADED, begin, model
from tests.tools.running import LoaderUnderTest, eventually

HELLO = PREFACE + SettingsFrame(0).serialize()


async def path(loader: LoaderUnderTest) -> str:
    async def found() -> str:
        return next(iter((await model(loader)).endpoints), "")

    return str(await eventually(found, what="the endpoint")).removeprefix("unix:")


@contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(path)
        yield sock


def memory(loader: LoaderUnderTest) -> int:
    return int(psutil.Process(loader.service.pid).memory_info().rss)


def read_to_end(sock: socket.socket) -> bytes:
    got = b""
    while piece := sock.recv(65536):
        got += piece
    return got


def call(number: int, size: int = 0) -> bytes:
    block = Encoder().encode(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/backend.Backend/PredictStream"),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ],
        huffman=False,
    )
    headers = HeadersFrame(number, block, flags=["END_HEADERS"])
    message = b"\0" + size.to_bytes(4, "big") + bytes(size)
    return bytes(headers.serialize() + DataFrame(number, message, flags=["END_STREAM"]).serialize())


@pytest.mark.parametrize("said", [b"", PREFACE[:10]])
async def test_who_says_nothing_is_hung_up_on(loader: LoaderUnderTest, said: bytes) -> None:
    await begin(loader, "m")
    await loader.start("--endpoint-handshake-timeout", "300ms")

    def silent(at: str) -> bytes:
        with connected(at) as sock, connected(at) as polite:
            sock.sendall(said)
            polite.sendall(HELLO)
            got = read_to_end(sock)
            polite.sendall(PingFrame(0, opaque_data=b"12345678").serialize())
            assert polite.recv(65536)
        return got

    assert await asyncio.to_thread(silent, await path(loader)) == SettingsFrame(0).serialize()


async def test_another_protocol_is_hung_up_on(loader: LoaderUnderTest) -> None:
    await begin(loader, "m")
    await loader.start("--endpoint-linger", "300ms")

    def speak(at: str) -> bytes:
        with connected(at) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: m\r\n\r\n")
            return read_to_end(sock)

    assert b"\0\0\0\1" in await asyncio.to_thread(speak, await path(loader))  # PROTOCOL_ERROR
    assert (await model(loader)).state == UNLOADED


async def test_pings_that_nobody_reads_the_answers_of(running: LoaderUnderTest) -> None:
    pings = PingFrame(0, opaque_data=b"12345678").serialize() * 4000

    def flood(at: str) -> int:
        sent = 0
        with connected(at) as sock:
            sock.sendall(HELLO)
            try:
                for _ in range(400):
                    sock.sendall(pings)
                    sent += len(pings)
            except OSError:
                return sent
        return sent

    at = await path(running)
    before = memory(running)
    assert await asyncio.to_thread(flood, at) < 4 * 1024**2
    assert memory(running) - before < 8 * 1024**2


async def test_a_client_with_all_windows_open_that_stops_reading(running: LoaderUnderTest) -> None:
    running.behave("fake", message_bytes=1_000_000, tokens=200, token_seconds=0.0)
    wide = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 2**31 - 1})
    more = WindowUpdateFrame(0, window_increment=2**31 - 1 - 65535)
    at = await path(running)

    def begin_streams(sock: socket.socket) -> None:
        sock.sendall(PREFACE + wide.serialize() + more.serialize())
        sock.sendall(b"".join(call(number) for number in (1, 3, 5, 7)))

    async def streams() -> bool:
        instances = (await model(running)).instances
        return bool(instances) and instances[0].active_calls == 4

    with connected(at) as sock:
        await asyncio.to_thread(begin_streams, sock)
        await eventually(streams)
        before = memory(running)
        with pytest.raises(AssertionError):
            await eventually(lambda: memory(running) - before > 8 * 1024**2, timeout=1.5)
        assert await asyncio.to_thread(_read, sock, 20_000_000)  # and continues

    async def none() -> bool:
        return not (await model(running)).instances[0].active_calls

    await eventually(none)


def _read(sock: socket.socket, size: int) -> bool:
    while size > 0:
        piece = sock.recv(1024 * 1024)
        if not piece:
            return False
        size -= len(piece)
    return True


async def test_no_descriptor_left_delays_and_breaks_nothing(running: LoaderUnderTest) -> None:
    at = await path(running)
    process = psutil.Process(running.service.pid)
    limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (process.num_fds(), limits[1]))

    def greeting(sock: socket.socket) -> Any:
        return sock.recv(9)

    with connected(at) as sock:
        before = sum(process.cpu_times()[:2])
        sock.settimeout(0.8)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(greeting, sock)
        assert sum(process.cpu_times()[:2]) - before < 0.4  # it does not busy-loop
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
        sock.settimeout(10)
        assert await asyncio.to_thread(greeting, sock) == SettingsFrame(0).serialize()
