"""Paths in the models folder, names of models, and which model uses which file."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.errors import InvalidRequestError, PathEscapeError
from services.gallery.library.models_folder import ModelsFolder, check_name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/x",
        "../x",
        "a/../x",
        "a//b",
        "./x",
        "a\\b",
        "a\0b",
        ".corral/x",
        "._gallery_m.yaml",
    ],
)
def test_a_path_outside_or_of_the_gallery_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PathEscapeError):
        ModelsFolder(tmp_path).target(name)


def test_a_symlink_does_not_lead_outside(tmp_path: Path) -> None:
    folder = ModelsFolder(tmp_path / "models")
    folder.path.mkdir()
    (folder.path / "out").symlink_to(tmp_path)
    assert folder.target("sub/x") == folder.path / "sub" / "x"
    with pytest.raises(PathEscapeError):
        folder.target("out/x")


@pytest.mark.parametrize("name", ["a/b", ".hidden", " a", "a ", "a\nb", "", "x" * 250])
def test_a_name_that_cannot_be_a_file_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_name(name, "model_id")
    assert check_name("llama-3.2:q4", "model_id") == "llama-3.2:q4"


def test_the_users_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("parameters: {model: shared}\n")
    (tmp_path / "b.yaml").write_text("name: bee\nmmproj: ./shared\n")
    folder = ModelsFolder(tmp_path)
    contents = folder.scan()
    assert contents.users("shared", but="a.yaml") == ["bee"]
    assert contents.users("b.yaml", but="") == ["bee"]
    one = folder.configured("a.yaml")
    assert one is not None
    assert (one.name, one.model_file, dict(one.record)) == ("a", "shared", {})
    assert folder.configured("none.yaml") is None
