"""Discovery of backend folders: one broken folder never hides the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.loader.backends.backend import Source
from services.loader.backends.folders import BackendFolder
from tests.tools.backend_folders import add

FOREIGN = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + (21).to_bytes(2, "little") + bytes(44)
METADATA = {
    "name": "cuda12-llama-cpp",
    "alias": "llama-cpp",
    "gallery_url": "https://gallery.example/index.yaml",
    "installed_at": "2026-01-02T03:04:05.123456789Z",
    "version": "1.2.3",
    "uri": "oci://example/cuda12-llama-cpp",
    "digest": "sha256:00",
}


def test_all_that_localai_writes_is_read(tmp_path: Path) -> None:
    add(tmp_path, "cuda12-llama-cpp", METADATA)
    (backend,) = BackendFolder(tmp_path, Source.SYSTEM).read()
    assert (backend.name, backend.group, backend.version) == (
        "cuda12-llama-cpp",
        "llama-cpp",
        "1.2.3",
    )
    assert backend.gallery_url == "https://gallery.example/index.yaml"
    assert backend.installed is not None and int(backend.installed) == 1767323045
    assert backend.requires == ("nvidia-cuda-12",) and backend.formats == ("gguf",)
    assert {"chat", "embeddings"} <= set(backend.usecases) and backend.system
    assert backend.error == ""


def test_corrals_own_metadata_wins_over_known_facts(tmp_path: Path) -> None:
    own = {
        "addresses": ["unix", "tcp"],
        "formats": ["onnx"],
        "usecases": ["TTS"],
        "requires": ["nvidia"],
        "concurrency": 4,
        "automatic": False,
    }
    add(tmp_path, "llama-cpp", {"corral": own})
    (backend,) = BackendFolder(tmp_path).read()
    assert backend.takes_unix and backend.formats == ("onnx",) and backend.usecases == ("tts",)
    assert backend.concurrency == 4 and backend.requires == ("nvidia",) and not backend.automatic


@pytest.mark.parametrize(
    "name", ["x.install-tmp", "x.install-backup", "x.install-tmp-17", "x.partial", ".x", "_x"]
)
def test_an_unfinished_install_is_not_listed(tmp_path: Path, name: str) -> None:
    """LocalAI HEAD's defect 19."""
    add(tmp_path, name, METADATA)
    add(tmp_path, "nothing-in-it", program=False)
    (tmp_path / "file").write_text("")
    assert BackendFolder(tmp_path).read() == []


def test_two_copies_of_one_backend_are_two(tmp_path: Path) -> None:
    for name in ("a-copy", "cuda12-llama-cpp", "z-copy"):
        add(tmp_path, name, METADATA)
    add(tmp_path, "llama_cpp", {"name": "llama-cpp"})
    names = [backend.name for backend in BackendFolder(tmp_path).read()]
    assert names == ["a-copy", "cuda12-llama-cpp", "llama-cpp", "z-copy"]


def test_what_cannot_run_says_why(tmp_path: Path) -> None:
    add(tmp_path, "a-gone", {"alias": "x"}, program=False)
    foreign = add(tmp_path, "b-foreign")
    (foreign / "server").write_bytes(FOREIGN)
    (foreign / "server").chmod(0o755)
    add(tmp_path, "c-broken", "{")
    folder = add(tmp_path, "d-folder", program=False)
    (folder / "run.sh").mkdir()
    lost = add(tmp_path, "e-lost-its-bits")
    (lost / "run.sh").chmod(0o644)
    errors = {backend.name: backend.error for backend in BackendFolder(tmp_path).read()}
    assert "run.sh" in errors["a-gone"] and "install it again" in errors["a-gone"]
    assert "server is a program for machine 21" in errors["b-foreign"]
    assert "metadata.json" in errors["c-broken"]
    assert "is no file" in errors["d-folder"]
    assert errors["e-lost-its-bits"] == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may execute and change everything")
def test_not_executable_and_not_ours(tmp_path: Path) -> None:
    add(tmp_path, "x")
    (tmp_path / "x" / "run.sh").chmod(0o011)
    assert "chmod" in BackendFolder(tmp_path).read()[0].error


def test_the_revision_follows_the_program_and_nothing_else(tmp_path: Path) -> None:
    folder = add(tmp_path, "x", {"version": "1"})
    source = BackendFolder(tmp_path)
    seen = [source.read()[0].revision]

    def changed() -> bool:
        seen.append(source.read()[0].revision)
        return seen[-1] != seen[-2]

    assert not changed()
    (folder / "a.log").write_text("what the backend wrote beside its program")
    assert not changed()
    add(tmp_path, "x", {"version": "2 and more"})
    assert changed()
    (folder / "run.sh").write_text("#!/bin/sh\nexit 3\n")
    assert changed()
    (folder / "server").write_bytes(b"#!/bin/sh\n")
    (folder / "server").chmod(0o755)
    assert changed()
    replacement = add(tmp_path, ".new", {"version": "2 and more"})
    folder.rename(tmp_path / ".old")
    replacement.rename(folder)
    assert changed()


def test_unchanged_metadata_is_not_read_again(tmp_path: Path) -> None:
    folder = add(tmp_path, "x", METADATA)
    source = BackendFolder(tmp_path)
    first = source.read()
    file = folder / "metadata.json"
    before = file.stat()
    # Different bytes with the same stamp: only reading the file again would reveal them.
    file.write_text(file.read_text().replace("1.2.3", "9.9.9"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.read()[0] is first[0]


def test_a_folder_that_comes_and_goes(tmp_path: Path) -> None:
    source = BackendFolder(tmp_path / "later")
    assert source.read() == [] and source.problem() == ""
    add(tmp_path / "later", "x")
    assert [backend.name for backend in source.read()] == ["x"]
    (tmp_path / "later" / "x" / "run.sh").unlink()
    assert source.read() == []
    file = tmp_path / "file"
    file.write_text("")
    broken = BackendFolder(file)
    assert broken.read() == [] and "cannot be read" in broken.problem()
