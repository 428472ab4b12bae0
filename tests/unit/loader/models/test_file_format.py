"""Formats of model files, by their content."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.models.file_format import format_of, model_format
from tests.tools.tiny_gguf import write


def safetensors(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def test_real_files(tmp_path: Path) -> None:
    gguf = tmp_path / "a.bin"
    write("count", gguf)
    assert model_format(gguf) == "gguf"
    safetensors(tmp_path / "b.gguf")
    assert model_format(tmp_path / "b.gguf") == "safetensors"
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    assert model_format(tmp_path / "c.pt") == "pytorch"
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("readme.txt", "no model")
    assert model_format(tmp_path / "d.zip") == ""


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"GGUF\x03\x00\x00\x00", "gguf"),
        (0x67676D6C.to_bytes(4, "little") + bytes(8), "ggml"),
        (0x67676A74.to_bytes(4, "little") + bytes(8), "ggml"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(8), "tflite"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", "pytorch"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.0.0", "onnx"),
        (b"\x08\x0a:\xff\x03", "onnx"),
        (b"\x08\x07\x99", ""),
        (b'{"json": "and no safetensors"}', ""),
        (b"version https://git-lfs.github.com/spec/v1\n", ""),
        (b"<!DOCTYPE html>", ""),
        (b"", ""),
        (b"GG", ""),
    ],
)
def test_first_bytes(head: bytes, kind: str) -> None:
    assert format_of(head) == kind


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (("model_index.json", "unet.safetensors"), "diffusers"),
        (("config.json", "model-00001-of-00002.safetensors"), "safetensors"),
        (("a-00001-of-00002.gguf",), "gguf"),
        (("model.onnx", "tokens.txt"), "onnx"),
        (("model.bin", "config.json", "vocabulary.txt"), "ctranslate2"),
        (("pytorch_model.bin", "config.json"), "pytorch"),
        (("readme.md",), ""),
        ((), ""),
    ],
)
def test_folders(tmp_path: Path, files: tuple[str, ...], kind: str) -> None:
    for name in files:
        (tmp_path / name).write_text("")
    assert model_format(tmp_path) == kind


def test_what_is_no_file(tmp_path: Path) -> None:
    assert model_format(tmp_path / "missing") == model_format(tmp_path / "nul\0l") == ""
    assert model_format(tmp_path / ("x" * 5000)) == ""


@given(st.binary(max_size=300))
def test_any_bytes_have_one_format_or_none(head: bytes) -> None:
    format_of(head)
