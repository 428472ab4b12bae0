"""Putting in place: all or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.common.errors import ConflictError, DownloadError
from services.gallery.install.placement import Placement


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(b"new " + name.encode())
    return folder


def test_files_and_texts(tmp_path: Path, staging: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "a").write_bytes(b"old a")

    Placement(staging).run(
        [(staging / "a", models / "a"), (staging / "b", models / "deep" / "er" / "b")],
        {models / "m.yaml": "name: m\n"},
    )

    assert tree(models) == {"a": b"new a", "deep/er/b": b"new b", "m.yaml": b"name: m\n"}
    assert list(staging.iterdir()) == []


@pytest.mark.parametrize("broken", ["folder", "missing"])
def test_when_something_fails_all_is_as_before(tmp_path: Path, staging: Path, broken: str) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "a").write_bytes(b"old a")
    (models / "m.yaml").write_bytes(b"old m")
    if broken == "folder":
        (models / "last.yaml").mkdir()
    else:
        (staging / "b").unlink()
    before = tree(models)

    with pytest.raises((ConflictError, DownloadError)):
        Placement(staging).run(
            [(staging / "a", models / "a"), (staging / "b", models / "deep" / "b")],
            {models / "m.yaml": "new m", models / "last.yaml": "text"},
        )

    assert tree(models) == before
    assert not (models / "deep").exists()
    assert not list(staging.glob("*.spare"))


def test_no_write_right_on_the_folder(tmp_path: Path, staging: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    models = tmp_path / "models"
    models.mkdir(mode=0o500)
    with pytest.raises(DownloadError, match="denied"):
        Placement(staging).run([(staging / "a", models / "a")], {})


def test_equal_texts_are_left_alone(tmp_path: Path, staging: Path) -> None:
    target = tmp_path / "m.yaml"
    target.write_text("same")
    before = target.stat()
    Placement(staging).run([], {target: "same"})
    assert target.stat().st_ino == before.st_ino


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path, staging: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"kept")
    target = tmp_path / "a"
    target.symlink_to(tmp_path / "elsewhere")
    Placement(staging).run([(staging / "a", target)], {})
    assert target.read_bytes() == b"new a"
    assert not target.is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"
