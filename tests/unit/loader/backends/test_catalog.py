"""The catalog of all backends: found by each of their names, and kept current as they change."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.errors import BackendNotFoundError
from services.common.process.bundled import bundled_backends
from services.loader.backends.backend import Source
from services.loader.backends.catalog import BackendCatalog
from services.loader.backends.external import ExternalBackends
from services.loader.backends.folders import BackendFolder
from services.loader.config import LoaderSettings
from services.loader.wiring import backend_sources
from tests.tools.backend_folders import add, catalog


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "{",
        "[]",
        "null",
        '{"name": 5, "alias": null, "installed_at": "yesterday", "version": []}',
        '{"corral": {"addresses": null, "formats": null, "concurrency": "two"}}',
        '{"corral": {"addresses": 5, "formats": "gguf", "concurrency": -1}}',
        '{"corral": 5}',
        '{"installed_at": "0001-01-01T00:00:00Z"}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_odd_metadata_breaks_nothing_else(tmp_path: Path, metadata: str) -> None:
    """One unreadable metadata.json fails LocalAI's whole listing."""
    add(tmp_path, "odd")
    (tmp_path / "odd" / "metadata.json").write_bytes(metadata.encode(errors="surrogateescape"))
    add(tmp_path, "good", {"alias": "nice"})
    backends = catalog(tmp_path, tmp_path / "missing")
    assert backends.find("nice").name == "good"
    odd = backends.backends()["odd"]
    assert not odd.takes_unix and odd.formats == () and odd.installed is None
    assert odd.concurrency == 0


def test_a_meta_backend_leads_to_the_one_that_was_chosen(tmp_path: Path) -> None:
    for name in ("cpu-llama-cpp", "cuda12-llama-cpp"):
        add(tmp_path, name, {"alias": "llama-cpp"})
    assert catalog(tmp_path).find("llama-cpp").name == "cpu-llama-cpp"
    stub = {"meta_backend_for": "cpu-llama-cpp"}
    add(tmp_path, "llama-cpp", stub, program=False)
    backends = catalog(tmp_path, capability="nvidia")
    assert backends.find("llama-cpp").name == "cpu-llama-cpp"
    assert backends.find("llama").name == "cpu-llama-cpp"
    assert backends.find("Llama.cpp").name == "cpu-llama-cpp"
    assert backends.find("cuda12-llama-cpp").name == "cuda12-llama-cpp"
    assert backends.backends()["llama-cpp"].chosen == "cpu-llama-cpp"


def test_symlinked_folders_are_backends(tmp_path: Path) -> None:
    add(tmp_path / "elsewhere", "real")
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "linked").symlink_to(tmp_path / "elsewhere" / "real")
    assert catalog(tmp_path / "backends").find("linked").run_file is not None


def test_links_to_nowhere_hide_nothing(tmp_path: Path) -> None:
    folder = add(tmp_path, "good")
    for place in (tmp_path, folder):
        (place / "circle").symlink_to(place / "circle")
        (place / "nowhere").symlink_to(place / "gone")
    backends = catalog(tmp_path)
    revision = backends.find("good").revision
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "program").chmod(0o755)
    backends.refresh()
    assert backends.find("good").revision != revision


def test_an_unknown_name_says_what_there_is(tmp_path: Path) -> None:
    add(tmp_path, "good")
    file = tmp_path / "external_backends.json"
    file.write_text("{")
    backends = BackendCatalog([ExternalBackends({"x": "somewhere"}, file), BackendFolder(tmp_path)])
    assert "port" in backends.find("x").error
    with pytest.raises(
        BackendNotFoundError, match="^backend not found: y; installed: good, x"
    ) as failed:
        backends.find("y")
    assert "external_backends.json cannot be used" in failed.value.message


def test_what_changed_is_told_by_name(tmp_path: Path) -> None:
    folder = add(tmp_path, "one", {"alias": "both"})
    backends = catalog(tmp_path)
    assert backends.refresh() == frozenset()
    add(tmp_path, "other")
    assert backends.refresh() == {"other"}
    assert backends.refresh() == frozenset()
    add(tmp_path, "cpu-two", {"alias": "both"})
    assert backends.refresh() == {"cpu-two", "both"}
    (folder / "run.sh").write_text("#!/bin/sh\nexit 1\n")
    assert backends.refresh() == {"one"}
    add(tmp_path, "one", "{")
    assert backends.refresh() == {"one"}
    (tmp_path / "cpu-two" / "run.sh").unlink()
    assert backends.refresh() == {"cpu-two", "both"}


def test_just_installed_it_is_found_and_the_change_is_still_told(tmp_path: Path) -> None:
    backends = catalog(tmp_path)
    backends.refresh()
    add(tmp_path, "new")
    assert "new" not in backends.backends()
    assert backends.find("new").name == "new"
    assert backends.refresh() == {"new"}
    add(tmp_path, "new", "{")
    backends.refresh()
    add(tmp_path, "new", "{}")
    assert not backends.find("new").error, "once fixed, it is found at once too"


def test_asked_from_many_threads_while_it_changes(tmp_path: Path) -> None:
    for number in range(20):
        add(tmp_path, f"b{number}", {"alias": "all"})
    backends = catalog(tmp_path)
    wrong: list[str] = []
    done = threading.Event()

    def ask(question: Callable[[], object]) -> None:
        try:
            while not done.is_set():
                question()
        except Exception as error:  # noqa: BLE001 - the test must fail on any error
            wrong.append(repr(error))

    questions = (backends.refresh, lambda: backends.find("all"), lambda: backends.find("b1"))
    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for number in range(100):
        add(tmp_path, f"b{number % 19 + 1}", {"alias": "all", "version": str(number)})
    done.set()
    for thread in threads:
        thread.join(10)
    assert not wrong


def test_where_a_loader_looks(tmp_path: Path) -> None:
    (tmp_path / "configuration").mkdir()
    (tmp_path / "configuration" / "external_backends.json").write_text(
        json.dumps({"afar": "127.0.0.1:50060"})
    )
    for place in ("user", "system"):
        add(tmp_path / place, "same", {"version": place})
        add(tmp_path / place, f"only-{place}")
    assets = tmp_path / "assets" / "backend-assets" / "grpc"
    assets.mkdir(parents=True)
    (assets / "piper").write_text("#!/bin/sh\n")
    settings = LoaderSettings(
        backends_path=[bundled_backends(), tmp_path / "user"],
        backends_system_path=tmp_path / "system",
        backend_assets_path=tmp_path / "assets",
        localai_config_dir=tmp_path / "configuration",
        external_backend={"x": "127.0.0.1:1"},
    )
    found = BackendCatalog(backend_sources(settings, "default")).backends()
    sources = {name: item.source for name, item in found.items()}
    assert sources["afar"] is sources["x"] is Source.EXTERNAL
    assert sources["only-user"] is sources["same"] is Source.USER
    assert sources["piper"] is Source.ASSETS
    assert sources["only-system"] is Source.SYSTEM
    assert sources["llama-cpp"] is Source.BUNDLED and not found["llama-cpp"].error
    assert found["same"].version == "user"
    assert list(found)[:2] == ["x", "afar"]
