"""Backends folders as they are found: one broken folder never hides the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import BackendNotFoundError
from services.loader.backend_catalog import BackendCatalog


def add(folder: Path, name: str, metadata: Any = None, *, program: bool = True) -> None:
    (folder / name).mkdir()
    if program:
        (folder / name / "run.sh").write_text("#!/bin/sh\n")
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        (folder / name / "metadata.json").write_text(text)


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "{",
        "[]",
        "null",
        '{"name": 5, "alias": null}',
        '{"corral": {"addresses": null, "formats": null}}',
        '{"corral": {"addresses": 5, "formats": "gguf"}}',
        '{"corral": 5}',
        "\udcff",
    ],
)
def test_odd_metadata_breaks_nothing_else(tmp_path: Path, metadata: str) -> None:
    add(tmp_path, "odd")
    (tmp_path / "odd" / "metadata.json").write_bytes(metadata.encode(errors="surrogateescape"))
    add(tmp_path, "good", {"alias": "nice"})
    catalog = BackendCatalog([tmp_path, tmp_path / "missing"], {})
    assert catalog.find("nice").name == "good"
    odd = catalog.backends()["odd"]
    assert not odd.takes_unix and odd.formats == ()


def test_a_meta_backend_leads_to_the_one_that_was_chosen(tmp_path: Path) -> None:
    for name in ("cpu-llama-cpp", "cuda12-llama-cpp"):
        add(tmp_path, name, {"alias": "llama-cpp"})
    assert BackendCatalog([tmp_path], {}).find("llama-cpp").name == "cpu-llama-cpp"
    stub = {"meta_backend_for": "cuda12-llama-cpp"}
    add(tmp_path, "llama-cpp", stub, program=False)
    catalog = BackendCatalog([tmp_path], {})
    assert catalog.find("llama-cpp").name == "cuda12-llama-cpp"
    assert catalog.find("llama").name == "cuda12-llama-cpp"
    assert catalog.find("cpu-llama-cpp").name == "cpu-llama-cpp"


def test_symlinked_folders_are_backends(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "backends").mkdir()
    add(tmp_path / "elsewhere", "real")
    (tmp_path / "backends" / "linked").symlink_to(tmp_path / "elsewhere" / "real")
    assert BackendCatalog([tmp_path / "backends"], {}).find("linked").run_file is not None


def test_an_external_address_that_cannot_be_one_says_so() -> None:
    assert "port" in BackendCatalog([], {"x": "somewhere"}).find("x").error
    with pytest.raises(BackendNotFoundError):
        BackendCatalog([], {}).find("x")
