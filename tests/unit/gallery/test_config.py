"""The gallery's settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.common.config.settings import ConfigError
from services.gallery.config import GallerySettings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "GALLERIES", "LOCALAI_GALLERIES", "HF_TOKEN", "HF_ENDPOINT", "HF_MIRROR", "HF",
        "PIP_INDEX_URL", "MODELS_PATH", "LOCALAI_MODELS_PATH", "CORRAL_CONFIG",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CORRAL_HOME", str(tmp_path))


def test_defaults(tmp_path: Path) -> None:
    settings = GallerySettings.load([])
    assert settings.models_path == tmp_path / "models"
    assert settings.gallery_state == tmp_path / "state" / "gallery"
    assert settings.built_in_gallery
    assert not GallerySettings.load(["--no-built-in-gallery"]).built_in_gallery


def test_galleries_as_localai_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"name": "localai", "url": "github:mudler/LocalAI/gallery/index.yaml@master"}]
    rows.append({"name": "b", "url": "https://h/i, with a comma.yaml"})
    monkeypatch.setenv("GALLERIES", json.dumps(rows))
    first, second = GallerySettings.load([]).galleries.items
    assert (first.name, first.url) == (rows[0]["name"], rows[0]["url"])
    assert second.url == rows[1]["url"]
    monkeypatch.setenv("LOCALAI_GALLERIES", "[]")
    assert not GallerySettings.load([]).galleries.items


@pytest.mark.parametrize(
    "text",
    ["{", "5", '[{"name": "x"}]', '["x"]', '[{"name": "a@b", "url": "u"}]',
     '[{"name": "a", "url": "u"}, {"name": "a", "url": "v"}]'],
)  # fmt: skip
def test_bad_galleries_name_the_setting(text: str) -> None:
    with pytest.raises(ConfigError, match="--galleries"):
        GallerySettings.load(["--galleries", text])


def test_the_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    settings = GallerySettings.load([])
    assert settings.hf_token is not None
    assert settings.hf_token.get_secret_value() == "hf_secret"
    assert "hf_secret" not in repr(settings)
    monkeypatch.setenv("HF_TOKEN", "")
    assert GallerySettings.load([]).hf_token is None


def test_the_package_index_of_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://mirror.example/simple/\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    assert GallerySettings.load([]).package_index == "https://mirror.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert GallerySettings.load([]).package_index == "https://other.example/simple"
    flag = ["--pypi-index-url", "https://flag.example/"]
    assert GallerySettings.load(flag).package_index == "https://flag.example"
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert GallerySettings.load([]).package_index == "https://pypi.org/simple"
    file.write_text("no section\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    assert GallerySettings.load([]).package_index.startswith("https://")


def test_hub_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://a.example/")
    assert GallerySettings.load([]).hf_endpoint == "https://a.example"
    monkeypatch.setenv("HF_MIRROR", "https://b.example")
    assert GallerySettings.load([]).hf_endpoint == "https://b.example"
    with pytest.raises(ConfigError, match="must begin with https"):
        GallerySettings.load(["--hf-endpoint", "b.example"])
