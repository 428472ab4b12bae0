"""The real command, killed at the worst moments."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml
from grpc import aio

from corral.gallery.v1 import gallery_pb2 as pb
from services.gallery.config import GallerySettings
from tests.tools.archives import wheel
from tests.tools.faulty_http import FaultyServer, simple_index
from tests.tools.gallery_service import (
    entry,
    failure,
    file,
    gallery_process,
    payload,
    settings,
    sha256,
    write_index,
)

DATA = payload(4_000_000)


def prepared(tmp_path: Path, *uris: str, **changes: object) -> GallerySettings:
    index = write_index(
        tmp_path / "gallery" / "index.yaml",
        [entry("m", file("m.gguf", uris[0], DATA, *uris[1:]))],
    )
    return settings(tmp_path, index, **changes)


async def test_killed_in_the_middle_of_a_download(tmp_path: Path) -> None:
    with FaultyServer() as server:
        uri = server.add("/m", DATA, etag='"1"', rate=2_000_000)
        config = prepared(tmp_path, uri, progress_save_interval=0.05)
        async with gallery_process(config, tmp_path) as (service, client):
            name = await client.begin("m")
            seen = await client.until(name, lambda state: state.bytes_done > 1_000_000)
            await service.end()
        assert [p.name for p in config.models_path.iterdir()] == [".corral"]
        server.resources["/m"].rate = 0
        async with gallery_process(config, tmp_path) as (service, client):
            first = [state async for _, state in client.watch(name)]
            operation = await client.get(name)
            assert operation.HasField("response"), operation
            # It resumed where it was: neither the bytes nor the percentage started again.
            asked = server.gets("/m")[1].headers["Range"]
            assert int(asked.removeprefix("bytes=").rstrip("-")) >= seen.bytes_done
            assert min(state.percent for state in first) > 0
            result = pb.InstallModelResult()
            operation.response.Unpack(result)
            assert 0 < result.bytes_fetched < len(DATA) - 1_000_000
            again = await client.end(await client.begin("m"))
            assert again.HasField("response")
            assert await service.stop(10) == 0
        assert (config.models_path / "m.gguf").read_bytes() == DATA
        assert yaml.safe_load((config.models_path / "m.yaml").read_text())["name"] == "m"
        assert list((config.models_path / ".corral" / "partial").iterdir()) == []


async def test_killed_again_and_again(tmp_path: Path) -> None:
    """Whenever it is killed, the operation ends well in the end, and nothing is left half-done."""
    packed = wheel("m.gguf", DATA)
    with FaultyServer() as server:
        path = "/p-1.0-py3-none-any.whl"
        server.add(path, packed, etag='"1"', rate=12_000_000)
        row = {"filename": path[1:], "url": path, "hashes": {"sha256": sha256(packed)}}
        simple_index(server, "p", [row])
        config = prepared(tmp_path, "pypi://p/m.gguf", pypi_index_url=server.url("/simple"))
        name = ""
        for delay in (0.0, 0.1, 0.3):
            async with gallery_process(config, tmp_path) as (service, client):
                name = name or await client.begin("m")
                await asyncio.wait({asyncio.create_task(client.end(name))}, timeout=delay)
                await service.end()
            target = config.models_path / "m.gguf"
            assert not target.exists() or target.read_bytes() == DATA
            assert not (config.models_path / "m.yaml").exists() or target.exists()
        async with gallery_process(config, tmp_path) as (service, client):
            operation = await client.end(name)
        assert operation.HasField("response"), operation
        assert target.read_bytes() == DATA


async def test_a_cancelled_operation_stays_so_after_a_crash(tmp_path: Path) -> None:
    with FaultyServer() as server:
        config = prepared(tmp_path, server.add("/m", DATA, rate=1_000_000))
        async with gallery_process(config, tmp_path) as (service, client):
            running, queued = await client.begin("m"), await client.begin("m")
            await client.until(running, lambda state: state.bytes_done > 0)
            await client.cancel(queued)
            await client.cancel(running)
            await service.end()
        async with gallery_process(config, tmp_path) as (service, client):
            for name in (running, queued):
                assert failure((await client.end(name)).error).code == "CANCELLED"
        assert not (config.models_path / "m.gguf").exists()


async def test_a_stop_in_the_middle_is_quick_and_clean(tmp_path: Path) -> None:
    with FaultyServer() as server:
        config = prepared(tmp_path, server.add("/m", DATA, rate=100_000), grace=20)
        async with gallery_process(config, tmp_path) as (service, client):
            name = await client.begin("m")
            await client.until(name, lambda state: state.bytes_done > 0)
            watching = asyncio.create_task(client.end(name))
            await client.until(name, lambda state: state.bytes_done > 0)
            assert await service.stop(5) == 0
            with pytest.raises(aio.AioRpcError):
                await watching
        assert "Traceback" not in service.log.read_text()
