"""Downloads over real sockets, from servers that misbehave in every way we could think of."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from corral.gallery.v1 import gallery_pb2 as pb
from tests.tools.faulty_http import Corrupt, Drop, FaultyServer, Stall, Status, WrongLength
from tests.tools.gallery_service import (
    DATA,
    PATH,
    entry,
    file,
    gallery,
    leftovers,
    one_file,
    payload,
    settings,
    sha256,
    write_index,
)
from tests.tools.hf_stub import HfStub


@pytest.mark.parametrize(
    ("faults", "gets"),
    [
        ([Drop(1_500_000)], 2),
        ([Drop(0)], 2),
        ([Drop(1_500_000), Drop(500_000)], 3),
        ([Status(500), Status(503)], 3),
        ([Status(429, {"Retry-After": "1"})], 2),
        ([WrongLength(1000)], 1),
        ([Status(408)], 2),
    ],
    ids=str,
)
async def test_what_passes_is_tried_again(
    tmp_path: Path, server: FaultyServer, faults: list[Any], gets: int
) -> None:
    server.fail(PATH, *faults)
    index = one_file(tmp_path, server.url(PATH))
    async with gallery(settings(tmp_path, index)) as client:
        start = asyncio.get_running_loop().time()
        name = await client.begin("m")
        percents = [state.percent async for _, state in client.watch(name)]
        operation = await client.get(name)
        took = asyncio.get_running_loop().time() - start

    assert not operation.HasField("error"), operation.error
    assert percents == sorted(percents)
    assert percents[-1] == 100.0
    assert (client.models / "m.gguf").read_bytes() == DATA
    assert len(server.gets(PATH)) == gets
    if "Retry-After" in str(faults):
        assert took >= 1.0
    for seen, fault in zip(server.gets(PATH)[1:], faults, strict=False):
        if isinstance(fault, Drop) and fault.after:
            # The bytes already received are not requested again.
            assert seen.headers["Range"].startswith("bytes=")
            assert seen.headers["If-Range"] == '"1"'


async def test_without_range_support_it_begins_anew(tmp_path: Path, server: FaultyServer) -> None:
    server.resources[PATH].ranges = False
    server.fail(PATH, Drop(1_500_000))
    async with gallery(settings(tmp_path, one_file(tmp_path, server.url(PATH)))) as client:
        await client.install("m")
    assert (client.models / "m.gguf").read_bytes() == DATA


@pytest.mark.parametrize("known", [True, False], ids=["digest", "no digest"])
async def test_a_file_that_changes_between_two_attempts(
    tmp_path: Path, server: FaultyServer, known: bool
) -> None:
    new = payload(3_000_000, seed=1)
    index = one_file(tmp_path, server.url(PATH), new if known else None)
    server.fail(PATH, Drop(1_500_000))
    async with gallery(settings(tmp_path, index, retry_initial_delay=0.5)) as client:
        name = await client.begin("m")
        await client.until(name, lambda state: "trying again" in state.message)
        server.add(PATH, new, etag='"2"')
        operation = await client.end(name)
    assert not operation.HasField("error"), operation.error
    assert (client.models / "m.gguf").read_bytes() == new


async def test_pieces_of_two_editions_are_fetched_anew(
    tmp_path: Path, server: FaultyServer
) -> None:
    """Without an ETag only the digest shows the difference, and the second try starts from zero."""
    new = payload(3_000_000, seed=1)
    server.resources[PATH].etag = ""
    index = one_file(tmp_path, server.url(PATH), new)
    server.fail(PATH, Drop(1_500_000))
    async with gallery(settings(tmp_path, index, retry_initial_delay=0.5)) as client:
        name = await client.begin("m")
        await client.until(name, lambda state: "trying again" in state.message)
        server.add(PATH, new)
        operation = await client.end(name)
    assert not operation.HasField("error"), operation.error
    assert (client.models / "m.gguf").read_bytes() == new
    assert len(server.gets(PATH)) == 3


async def test_without_digest_and_etag_nothing_is_spliced(
    tmp_path: Path, server: FaultyServer
) -> None:
    server.resources[PATH].etag = ""
    server.fail(PATH, Drop(1_500_000))
    async with gallery(settings(tmp_path, one_file(tmp_path, server.url(PATH), None))) as client:
        await client.install("m")
    assert "Range" not in server.gets(PATH)[1].headers
    assert (client.models / "m.gguf").read_bytes() == DATA


async def test_a_stalled_download_is_given_up_and_resumed(
    tmp_path: Path, server: FaultyServer
) -> None:
    server.fail(PATH, Stall(1_000_000))
    config = settings(tmp_path, one_file(tmp_path, server.url(PATH)), read_stall_timeout=0.4)
    async with gallery(config) as client:
        await client.install("m")
    assert server.gets(PATH)[1].headers["Range"] == "bytes=1000000-"


async def test_redirects_keep_credentials_to_their_host(tmp_path: Path) -> None:
    with FaultyServer() as here, FaultyServer("127.0.0.2") as there:
        there.add(PATH, DATA)
        here.fail("/start", Status(302, {"Location": there.url(PATH)}))
        here.add("/start", DATA, head=405)
        address = here.url("/start").replace("http://", "http://me:word@")
        async with gallery(settings(tmp_path, one_file(tmp_path, address))) as client:
            name = await client.begin("m")
            sources = {state.source async for _, state in client.watch(name)}
    assert (client.models / "m.gguf").read_bytes() == DATA
    assert here.gets("/start")[0].headers["Authorization"].startswith("Basic ")
    assert there.gets(PATH)[0].headers["Authorization"] is None
    assert not any("word" in source for source in sources)


async def test_the_mirror_serves_when_the_first_source_does_not(
    tmp_path: Path, server: FaultyServer
) -> None:
    server.add("/bad", DATA)
    server.fail("/bad", Corrupt())
    mirrors = (server.url("/missing"), server.url("/bad"), server.url(PATH))
    index = one_file(tmp_path, "http://127.0.0.1:9/m", DATA, *mirrors)
    async with gallery(settings(tmp_path, index)) as client:
        await client.install("m")
    assert (client.models / "m.gguf").read_bytes() == DATA
    assert len(server.gets("/bad")) == 1


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "NOT_FOUND", "SOURCE_NOT_FOUND"),
        (403, "PERMISSION_DENIED", "SOURCE_ACCESS_DENIED"),
        (401, "PERMISSION_DENIED", "SOURCE_ACCESS_DENIED"),
        (500, "UNAVAILABLE", "DOWNLOAD_FAILED"),
        (400, "UNAVAILABLE", "DOWNLOAD_FAILED"),
    ],
)
async def test_what_a_refusal_is_called(
    tmp_path: Path, server: FaultyServer, status: int, code: str, reason: str
) -> None:
    server.fail(PATH, *[Status(status)] * 9)
    async with gallery(settings(tmp_path, one_file(tmp_path, server.url(PATH)))) as client:
        found = await client.failure("m")
    assert (found.code, found.reason, found.retry) == (code, reason, status == 500)
    assert str(status) in found.message
    assert len(server.gets(PATH)) == (4 if status == 500 else 1)
    assert sorted(p.name for p in client.models.iterdir()) == [".corral"]


async def test_a_wrong_digest_names_both_and_is_not_fetched_twice(
    tmp_path: Path, server: FaultyServer
) -> None:
    index = one_file(tmp_path, server.url(PATH), b"something else")
    async with gallery(settings(tmp_path, index)) as client:
        found = await client.failure("m")
    assert (found.code, found.reason) == ("DATA_LOSS", "DIGEST_MISMATCH")
    assert found.metadata["expected_sha256"] == sha256(b"something else")
    assert found.metadata["found_sha256"] == sha256(DATA)
    assert len(server.gets(PATH)) == 1
    assert leftovers(client.models) == []
    assert not (client.models / "m.gguf").exists()


async def test_all_sources_are_named_when_none_has_it(tmp_path: Path, server: FaultyServer) -> None:
    missing = server.url("/missing")
    index = one_file(tmp_path, "http://127.0.0.1:9/m", DATA, missing, "hf://o/r/m.gguf")
    async with gallery(settings(tmp_path, index)) as client:
        found = await client.failure("m")
    assert found.code == "UNAVAILABLE"
    for part in ("127.0.0.1:9", missing, "hf://o/r/m.gguf", "3 sources"):
        assert part in found.message


async def test_an_upper_case_digest_fits(tmp_path: Path, server: FaultyServer) -> None:
    row = file("m.gguf", server.url(PATH)) | {"sha256": sha256(DATA).upper()}
    index = write_index(tmp_path / "gallery" / "index.yaml", [entry("m", row)])
    async with gallery(settings(tmp_path, index)) as client:
        await client.install("m")


async def test_the_hub_with_a_token_and_resume(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "o" / "r"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(DATA)
    with HfStub(tmp_path / "hub", token="good", gated=("o/r",)) as stub:
        path = f"/o/r/resolve/{stub.commit('o/r')}/m.gguf"
        stub.fail(path, Drop(1_000_000))
        index = one_file(tmp_path, "huggingface://o/r/m.gguf")
        async with gallery(settings(tmp_path, index, hf_endpoint=stub.address)) as client:
            found = await client.failure("m")
            assert (found.code, found.reason) == ("PERMISSION_DENIED", "SOURCE_ACCESS_DENIED")
            assert "HF_TOKEN" in found.message
        config = settings(tmp_path, index, hf_endpoint=stub.address, hf_token="good")
        async with gallery(config) as client:
            await client.install("m")
        assert stub.gets(path)[1].headers["Range"].startswith("bytes=")
    assert (client.models / "m.gguf").read_bytes() == DATA


async def test_the_hubs_digest_is_compared_before_anything_is_fetched(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "o" / "r"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(DATA)
    with HfStub(tmp_path / "hub") as stub:
        index = one_file(tmp_path, "huggingface://o/r/m.gguf", b"other")
        async with gallery(settings(tmp_path, index, hf_endpoint=stub.address)) as client:
            found = await client.failure("m")
        assert found.reason == "DIGEST_MISMATCH"
        assert not [seen for seen in stub.requests if seen.method == "GET"]


async def test_several_files_one_after_another(tmp_path: Path, server: FaultyServer) -> None:
    parts = [payload(500_000, seed=n) for n in range(5)]
    urls = [server.add(f"/{n}", part) for n, part in enumerate(parts)]
    rows = [entry("m", *(file(f"p{n}.bin", urls[n], parts[n]) for n in range(5)))]
    index = write_index(tmp_path / "gallery" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        name = await client.begin("m")
        states = [state async for _, state in client.watch(name)]
    downloading = [s for s in states if s.phase == pb.OperationMetadata.PHASE_DOWNLOADING]
    # All sizes were known before the first byte.
    assert all(state.bytes_total == 2_500_000 for state in downloading)
    assert [s.percent for s in states] == sorted(s.percent for s in states)
    assert all((client.models / f"p{n}.bin").read_bytes() == parts[n] for n in range(5))


async def test_the_hubs_token_stays_with_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "o" / "r"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(DATA)
    with HfStub(tmp_path / "hub", token="good") as stub, FaultyServer("127.0.0.2") as elsewhere:
        path = f"/o/r/resolve/{stub.commit('o/r')}/m.gguf"
        stub.fail(path, Status(302, {"Location": elsewhere.add("/cdn", DATA)}))
        index = one_file(tmp_path, f"{stub.address}/o/r/resolve/main/m.gguf")
        config = settings(tmp_path, index, hf_endpoint=stub.address, hf_token="good")
        async with gallery(config) as client:
            await client.install("m")
        assert stub.gets(path)[0].headers["Authorization"] == "Bearer good"
        assert elsewhere.gets("/cdn")[0].headers["Authorization"] is None


async def test_a_hub_that_does_not_answer_holds_up_no_cancellation(
    tmp_path: Path, server: FaultyServer
) -> None:
    """The hub's library cannot be interrupted, so the cancellation does not wait for it."""
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    index = one_file(tmp_path, "hf://o/r/m.gguf")
    config = settings(tmp_path, index, hf_endpoint=f"http://127.0.0.1:{port}")
    with silent:
        async with gallery(config) as client:
            name = await client.begin("m")
            await client.until(name, lambda state: "sizes" in state.message)
            start = asyncio.get_running_loop().time()
            await client.cancel(name)
            await client.end(name)
            assert asyncio.get_running_loop().time() - start < 2
