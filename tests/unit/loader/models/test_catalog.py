"""A models folder, at first and as it changes: no file hides another, and none is read twice."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from services.common.errors import (
    ModelConfigError,
    ModelDisabledError,
    ModelNotFoundError,
)
from services.loader.models import catalog as model_catalog
from services.loader.models.catalog import ModelCatalog
from services.loader.models.config_file import read_file


def write(folder: Path, name: str, text: str, *, age: float = 60) -> None:
    """Write a file whose last change was `age` seconds ago."""
    (folder / name).write_text(text)
    then = time.time() - age
    os.utime(folder / name, (then, then))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files read from now on."""
    names: list[str] = []

    def read(path: str, *, maximum: int) -> bytes:
        names.append(os.path.basename(path))
        return read_file(path, maximum=maximum)

    monkeypatch.setattr(model_catalog, "read_file", read)
    return names


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, reads: list[str]) -> None:
    for name in "abc":
        write(tmp_path, f"{name}.yaml", f"name: {name}\nparameters: {{model: {name}.bin}}\n")
    catalog = ModelCatalog(tmp_path)
    assert list(catalog.models()) == ["a", "b", "c"]
    assert sorted(reads) == ["a.yaml", "b.yaml", "c.yaml"]
    for _ in range(3):
        catalog.look()
        assert catalog.resolve("b").config.model == "b.bin"
        assert catalog.find("c.bin").name == "c"
    assert len(reads) == 3
    write(tmp_path, "b.yaml", "name: b\nthreads: 4\n", age=0)
    assert catalog.resolve("b").config.threads == 4
    assert reads[3:] == ["b.yaml"]


def test_what_was_written_a_moment_ago_is_found(tmp_path: Path) -> None:
    catalog = ModelCatalog(tmp_path / "models")
    with pytest.raises(ModelNotFoundError):
        catalog.find("a")
    (tmp_path / "models").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "models", "f.yaml", f"name: {name}\n", age=0)
        assert catalog.find(name).name == name
    with pytest.raises(ModelNotFoundError):
        catalog.find("a")
    (tmp_path / "models" / "f.yaml").unlink()
    with pytest.raises(ModelNotFoundError):
        catalog.find("b")
    assert catalog.models() == {}


def test_a_call_reads_no_more_than_a_slice(tmp_path: Path, reads: list[str]) -> None:
    catalog = ModelCatalog(tmp_path)
    assert catalog.models() == {}
    for number in range(200):
        write(tmp_path, f"m{number}.yaml", f"name: m{number}\n")
    catalog._looked = model_catalog._Look(0, time.time(), 0)  # as if it had just been scanned
    assert catalog.look(50, "m137").by_name["m137"]
    assert len(reads) == 50
    assert len(catalog.look().by_name) == 200


def test_half_a_file_keeps_what_was_there(tmp_path: Path) -> None:
    write(tmp_path, "m.yaml", "name: m\nthreads: 3\n")
    catalog = ModelCatalog(tmp_path)
    assert catalog.find("m").config.threads == 3
    write(tmp_path, "m.yaml", "name: m\nthreads: [\n", age=0)
    assert catalog.look().by_name["m"].config.threads == 3
    assert catalog.find("m").error is None
    write(tmp_path, "m.yaml", "name: m\nthreads: [\n", age=10)
    assert catalog.find("m").error is not None
    write(tmp_path, "m.yaml", "name: m\nthreads: 4\n", age=0)
    assert catalog.find("m").config.threads == 4


def test_what_is_broken_hides_nothing(tmp_path: Path) -> None:
    write(tmp_path, "good.yaml", "name: good\n")
    write(tmp_path, "bad.yaml", "name: [\n")
    write(tmp_path, "bytes.YML", "")
    (tmp_path / "bytes.YML").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "link.yaml").symlink_to("nowhere.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in (
        ".hidden.yaml",
        "~$m.yaml",
        "x.yaml.bak",
        "x.yaml~",
        "w.gguf.partial",
        "w.gguf.part",
    ):
        write(tmp_path, name, "name: no\n")
    models = ModelCatalog(tmp_path).models()
    assert {name: entry.error is None for name, entry in models.items()} == {
        "good": True,
        "bad": False,
        "bytes": False,
        "link": False,
        "pipe": False,
    }


def test_the_last_of_equal_names_counts_unless_it_is_broken(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "name: m\nthreads: 1\n")
    write(tmp_path, "b.yaml", "name: m\nthreads: 2\n")
    write(tmp_path, "c.yaml", "name: m\nthreads: x\n")
    catalog = ModelCatalog(tmp_path)
    assert catalog.find("m").config.threads == 2 and catalog.find("m").config_file == "b.yaml"
    (tmp_path / "b.yaml").unlink()
    assert catalog.find("m").config_file == "a.yaml"


def test_a_list_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    write(tmp_path, "all.yaml", "- name: a\n  threads: 1\n- name: b\n  threads: x\n- name: c\n")
    write(folder, "c.yaml", "name: c\nthreads: 7\n")
    catalog = ModelCatalog(folder, tmp_path / "all.yaml")
    models = catalog.models()
    assert list(models) == ["a", "b", "c"]
    assert models["c"].config.threads == 7 and models["a"].error is None
    assert "all.yaml[1], line 4, threads" in str(models["b"].error)
    lines = catalog.lines(models["a"])
    assert lines is not None and lines.of(("threads",)) == 2
    write(tmp_path, "all.yaml", "- name: a\n  threads: 5\n", age=0)
    assert catalog.resolve("a").config.threads == 5 and list(catalog.look().by_name) == ["a", "c"]


def test_an_alias_leads_to_its_target_or_says_why_not(tmp_path: Path) -> None:
    write(tmp_path, "m.yaml", "name: m\n")
    write(
        tmp_path,
        "x.yaml",
        "- name: to-m\n  alias: m\n- name: far\n  alias: to-m\n- name: gone\n  alias: no",
    )
    write(tmp_path, "w.gguf", "")
    write(tmp_path, "y.yaml", "name: to-file\nalias: w.gguf\n")
    catalog = ModelCatalog(tmp_path)
    assert catalog.resolve("to-m").name == "m" and catalog.resolve("to-file").name == "w.gguf"
    for name in ("far", "gone"):
        assert "which is not a model of its own" in str(catalog.find(name).error)
        with pytest.raises(ModelConfigError):
            catalog.resolve(name)
    write(tmp_path, "no.yaml", "name: no\n")
    assert catalog.look().by_name["gone"].error is None and catalog.resolve("gone").name == "no"


def test_a_disabled_model_is_shown_and_refused(tmp_path: Path) -> None:
    write(tmp_path, "m.yaml", "name: m\ndisabled: true\nparameters: {model: m.bin}\n")
    write(tmp_path, "m.bin", "")
    catalog = ModelCatalog(tmp_path)
    assert list(catalog.models()) == ["m"]
    with pytest.raises(ModelDisabledError, match="m.yaml"):
        catalog.resolve("m")


def test_the_only_model(tmp_path: Path) -> None:
    catalog = ModelCatalog(tmp_path)
    assert catalog.only_model() is None
    write(tmp_path, "w.gguf", "")
    assert catalog.only_model() == "w.gguf"
    write(tmp_path, "m.yaml", "name: m\n")
    write(tmp_path, "a.yaml", "name: a\nalias: m\n")
    assert catalog.only_model() == "m"


def test_a_revision_changes_with_the_model_s_own_part_or_file(tmp_path: Path) -> None:
    write(tmp_path, "l.yaml", "- name: a\n  parameters: {model: a.bin}\n- name: b\n")
    catalog = ModelCatalog(tmp_path)
    first = [catalog.resolve(name).revision for name in "ab"]
    write(tmp_path, "l.yaml", "- name: a\n  parameters: {model: a.bin}\n- name: b\n  threads: 2\n")
    second = [catalog.resolve(name).revision for name in "ab"]
    assert first[0] == second[0] and first[1] != second[1]
    write(tmp_path, "a.bin", "weights")
    assert catalog.resolve("a").revision != second[0]


def test_files_below_the_folder_are_models_when_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", "w.gguf", "")
    catalog = ModelCatalog(tmp_path)
    assert catalog.resolve("sub/w.gguf").config.model == "sub/w.gguf"
    for name in ("sub/none.gguf", "../sub/w.gguf", "/etc/hosts", "sub", "a\0b/c"):
        with pytest.raises(ModelNotFoundError):
            catalog.resolve(name)
