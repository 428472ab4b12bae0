"""The models folder under the four policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.loose_files import is_loose_model
from services.gallery.library.installed import InstalledModels, LooseFiles, ModelFilter
from services.gallery.library.models_folder import ModelsFolder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model", True), ("ggml-tiny.en", True), ("a.task", True), ("archive.tar", True),
        ("w.gguf", True), ("W.GGUF", True), ("w.bin", True), ("w.safetensors", False),
        ("README", False), ("Readme.md", False), ("MODEL_CARD", False), ("notes.TXT", False),
        ("a.tar.gz", False), ("x.partial", False), ("x.bak2", False), (".hidden", False),
        ("c.yaml", False), ("c.yml", False), ("t.tmpl", False), ("dot.", False),
    ],
)  # fmt: skip
def test_what_can_be_a_model_by_its_name(name: str, expected: bool) -> None:
    assert is_loose_model(name) is expected


@pytest.fixture
def listing(tmp_path: Path) -> InstalledModels:
    configs = {
        "chat.yaml": "name: chat\nknown_usecases: [chat]\nparameters: {model: used}\n",
        "b.yml": (
            "parameters: {model: sub/deep}\nmmproj: projector\ndraft_model: draft\n"
            "lora_adapters: [one, two]\nlora_adapter: three\n"
        ),
        "odd.yaml": "name: odd\nparameters: nonsense\nlora_adapters: 5\n",
        "list.yaml": "- a\n",
        "broken.yaml": "{",
        "._gallery_chat.yaml": "gallery: g\nentry_name: e\nfiles: [{filename: recorded}]\n",
    }
    for name, text in configs.items():
        (tmp_path / name).write_text(text)
    for name in (
        "used",
        "projector",
        "draft",
        "one",
        "two",
        "three",
        "recorded",
        "loose",
        "w.gguf",
    ):
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "folder").mkdir()
    return InstalledModels(ModelsFolder(tmp_path))


FILES = ["draft", "loose", "one", "projector", "recorded", "three", "two", "used", "w.gguf"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (LooseFiles.LOOSE_ONLY, ["loose", "w.gguf"]),
        (LooseFiles.SKIP_IF_CONFIGURED, ["b", "chat", "loose", "odd", "w.gguf"]),
        (LooseFiles.SKIP_ALWAYS, ["b", "chat", "odd"]),
        (LooseFiles.ALWAYS_INCLUDE, sorted([*FILES, "b", "chat", "odd"])),
    ],
)
async def test_the_policies(
    listing: InstalledModels, policy: LooseFiles, expected: list[str]
) -> None:
    assert [model.name for model in await listing.models(policy)] == expected


async def test_what_is_told_of_a_model(listing: InstalledModels) -> None:
    found = {one.name: one for one in await listing.models(LooseFiles.ALWAYS_INCLUDE)}
    chat = found["chat"]
    assert (chat.config_file, chat.model_file, chat.entry) == ("chat.yaml", "used", "g@e")
    assert (chat.usecases, chat.size, chat.loose) == (("chat",), 10, False)
    assert found["loose"].loose
    assert found["b"].config_file == "b.yml"


async def test_conditions_leave_out_no_use(listing: InstalledModels) -> None:
    """A file of a model that a condition leaves out does not turn up as a loose one."""
    found = await listing.models(LooseFiles.SKIP_IF_CONFIGURED, ModelFilter(name_contains="USED"))
    assert found == []
    chats = await listing.models(LooseFiles.ALWAYS_INCLUDE, ModelFilter(usecase="chat"))
    assert [model.name for model in chats] == ["chat"]


async def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    listing = InstalledModels(ModelsFolder(tmp_path / "none"))
    assert await listing.models(LooseFiles.ALWAYS_INCLUDE) == []
    assert not await listing.exists("x", LooseFiles.ALWAYS_INCLUDE)


async def test_a_changed_configuration_is_read_again(
    listing: InstalledModels, tmp_path: Path
) -> None:
    assert await listing.exists("chat", LooseFiles.SKIP_ALWAYS)
    (tmp_path / "chat.yaml").write_text("name: renamed\n")
    assert not await listing.exists("chat", LooseFiles.SKIP_ALWAYS)
    assert await listing.exists("renamed", LooseFiles.SKIP_ALWAYS)
