"""Requests are admitted, and planned from the entry that was admitted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.common.backoff import Backoff
from services.common.errors import InvalidRequestError, PathEscapeError, UnsupportedSourceError
from services.gallery.download.retry import RetryPolicy
from services.gallery.index.galleries import Galleries, GalleryConfig, IndexLimits
from services.gallery.resolve.planner import InstallRequest, Planner
from services.gallery.sources.file import FileSource
from services.gallery.sources.http import HttpClient
from services.gallery.sources.registry import SourceRegistry


class Fixture:
    """A planner over one gallery, the file of its index, and how often the galleries were read."""

    def __init__(self, folder: Path, http: HttpClient) -> None:
        self.index = folder / "index.yaml"
        sources = SourceRegistry([FileSource()], http)
        limits = IndexLimits(ttl=0, timeout=5, retry_after=0, document_size=10_000)
        galleries = Galleries(
            [GalleryConfig("g", (self.index.as_uri(),))], sources, folder / "cache", limits
        )
        self.reads = 0
        entries = galleries.entries

        async def counted() -> Any:
            self.reads += 1
            return await entries()

        galleries.entries = counted  # type: ignore[method-assign]
        policy = RetryPolicy(attempts=1, backoff=Backoff(), longest_wait=0)
        self.planner = Planner(galleries, sources, retry_policy=policy, document_size=10_000)

    def write(self, **changes: Any) -> None:
        rows = [
            {
                "name": "m",
                "config_file": {"backend": "llama-cpp", "parameters": {"model": "m.gguf"}},
                "files": [{"filename": "m.gguf", "uri": "file:///m.gguf"}],
                "variants": [{"model": "small"}],
                **changes,
            },
            {"name": "small", "config_file": {"backend": "small"}},
        ]
        self.index.write_text(json.dumps(rows))


@pytest.fixture
async def gallery(tmp_path: Path) -> AsyncIterator[Fixture]:
    http = HttpClient(connect_timeout=1, stall_timeout=1, answer_timeout=1)
    fixture = Fixture(tmp_path, http)
    fixture.write()
    yield fixture
    await http.close()


async def test_the_galleries_are_read_once_for_an_install(gallery: Fixture) -> None:
    admitted = await gallery.planner.admit(InstallRequest("m", model_id="mine"))
    assert (admitted.request.entry, admitted.request.model_id) == ("g@m", "mine")
    plan = await gallery.planner.plan(admitted)
    assert gallery.reads == 1
    assert (plan.name, plan.config_file, plan.changed) == ("mine", "mine.yaml", False)
    assert [file.filename for file in plan.files] == ["m.gguf"]


async def test_a_plan_from_the_journal_reports_that_the_entry_changed(gallery: Fixture) -> None:
    admitted = await gallery.planner.admit(InstallRequest("m"))
    resumed = replace(admitted, choice=None)
    assert not (await gallery.planner.plan(resumed)).changed
    gallery.write(overrides={"threads": 4})
    plan = await gallery.planner.plan(resumed)
    assert plan.changed
    assert plan.config["threads"] == 4
    # An earlier version journalled no digest: there is nothing to compare with.
    assert not (await gallery.planner.plan(replace(resumed, digest=""))).changed


async def test_a_variant_brings_its_own_configuration(gallery: Fixture) -> None:
    admitted = await gallery.planner.admit(InstallRequest("m", variant="small"))
    plan = await gallery.planner.plan(admitted)
    assert plan.config == {"name": "m", "backend": "small"}
    assert plan.record["resolved_variant"] == "small"
    with pytest.raises(InvalidRequestError, match="'large'"):
        await gallery.planner.admit(InstallRequest("m", variant="large"))


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"parameters": {"model": "../x"}}, PathEscapeError),
        ({"mmproj": "/etc/passwd"}, PathEscapeError),
        ({"artifacts": [{"repo": "x"}]}, UnsupportedSourceError),
    ],
)
async def test_a_configuration_stays_in_the_models_folder(
    gallery: Fixture, overrides: dict[str, Any], error: type[Exception]
) -> None:
    admitted = await gallery.planner.admit(InstallRequest("m", overrides=overrides))
    with pytest.raises(error):
        await gallery.planner.plan(admitted)
