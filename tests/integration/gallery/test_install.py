"""Installing a model: what exists afterwards, what is unchanged, and what is refused."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from corral.gallery.v1 import gallery_pb2 as pb
from services.gallery.index.galleries import Galleries
from services.gallery.library.models_folder import ModelsFolder
from tests.tools.archives import packed
from tests.tools.faulty_http import FaultyServer, Status
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
        # Callers of this service may name files on its machine, but only for themselves.
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
        # Complete files are kept for the next try.
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


async def test_localais_own_models_install(tmp_path: Path, server: FaultyServer) -> None:
    """A gallery in a folder serves the `github:` base configurations from next to its index."""
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


async def test_one_read_of_the_galleries_and_no_scan_unless_a_file_is_replaced(
    tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(owner, name, counted)

    count(Galleries, "entries")
    count(ModelsFolder, "scan")
    rows = [entry("m", file("m.gguf", server.url(PATH), DATA)), entry("n")]
    index = write_index(tmp_path / "gallery" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        await client.install("m")
        assert calls == {"entries": 1}
        await client.install("n")
        assert calls == {"entries": 2}
        # A file is now replaced: checked before the download, and again when it is put in place.
        (client.models / "m.gguf").write_bytes(b"other")
        calls.clear()
        await client.install("m")
        assert calls == {"entries": 1, "scan": 2}
