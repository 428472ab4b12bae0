"""Partial downloads are kept for a restart, shared, and removed when nothing needs them."""

from __future__ import annotations

import os
from pathlib import Path

from services.gallery.download.staging import Origin, Staging
from services.gallery.index.entry import FileSpec

FILE = FileSpec("m.gguf", ("https://a/m", "https://b/m"), "a" * 64)


def test_the_same_file_has_the_same_paths(tmp_path: Path) -> None:
    stage = Staging(tmp_path).stage(FILE)
    assert Staging(tmp_path).stage(FileSpec("m.gguf", ("https://c/m",), "a" * 64)) == stage
    assert Staging(tmp_path).stage(FileSpec("m.gguf", ("https://a/m",), "b" * 64)) != stage
    assert Staging(tmp_path).stage(FileSpec("n.gguf", ("https://a/m",), "a" * 64)) != stage


def test_the_origin_of_a_partial_file_is_recorded(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.prepare()
    stage = staging.stage(FILE)
    assert stage.origin(stage.part) == Origin()
    stage.record(stage.part, Origin("https://a/m", '"1"'))
    assert stage.origin(stage.part) == Origin("https://a/m", '"1"')
    stage.discard()
    assert stage.origin(stage.part) == Origin()
    assert os.listdir(staging.folder) == []


async def test_a_file_that_two_operations_claim_is_kept(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.prepare()
    stage = staging.stage(FILE)
    stage.part.write_bytes(b"x")
    async with staging.claim([stage]):
        async with staging.claim([stage]):
            staging.discard([stage])
            assert stage.part.exists()
        staging.reap(older_than=-10)
        assert stage.part.exists()
        staging.discard([stage])
        assert not stage.part.exists()


async def test_only_old_unclaimed_files_are_reaped(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.reap(older_than=0)
    staging.prepare()
    old, new = staging.stage(FILE), staging.stage(FileSpec("n", ("https://a/n",)))
    for path in (old.part, new.part, staging.folder / "mine.txt"):
        path.write_bytes(b"x")
    os.utime(old.part, (1, 1))
    os.utime(staging.folder / "mine.txt", (1, 1))
    staging.reap(older_than=100)
    assert sorted(os.listdir(staging.folder)) == sorted([new.part.name, "mine.txt"])
