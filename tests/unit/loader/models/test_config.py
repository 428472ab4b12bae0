"""Model files as LocalAI reads them: whatever Go's YAML takes is taken, and means the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corral.backend import backend_pb2
from services.loader.gateway.load_request import message
from services.loader.models.catalog import ModelCatalog, ModelEntry
from services.loader.options.resolver import OptionMaker


def read(folder: Path, text: str) -> ModelEntry:
    (folder / "file.yaml").write_text(text)
    (entry,) = ModelCatalog(folder).models().values()
    return entry


def options(folder: Path, text: str) -> backend_pb2.ModelOptions:
    entry = read(folder, text)
    assert entry.error is None, str(entry.error)
    return message(OptionMaker(folder).sent(entry, "any"))


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("flash_attention: on", "FlashAttention", "on"),
        ("flash_attention: true", "FlashAttention", "true"),
        ("tensor_split: 0.50", "TensorSplit", "0.50"),
        ("main_gpu: 0", "MainGPU", "0"),
        ("context_size: 1e4", "ContextSize", 10000),
        ("context_size: 0x1000", "ContextSize", 4096),
        ("context_size: 8_192", "ContextSize", 8192),
        ("threads: 010", "Threads", 8),
        ("f16: yes", "F16Memory", True),
        ("cuda: TRUE", "CUDA", True),
        ("mmproj: ~", "MMProj", ""),
        (
            "options: [gpu:0, 1:30, 2024-01-01, yes, 1.10]",
            "Options",
            ["gpu:0", "1:30", "2024-01-01", "yes", "1.10"],
        ),
        ("parameters: {seed: 3000000001}", "Seed", 3000000001 - 2**31),
        ("engine_args: {a: on, b: 2024-01-01, c: 1.5}", "EngineArgs", None),
        ("stopwords:\n- =\n- <|x|>", "Threads", 0),
        ('description: "don\\\'t"', "Threads", 0),
        ("whatever: !custom {a: [1]}", "Threads", 0),
        ("threads: 3\n---\nthreads: 4", "Threads", 3),
    ],
)
def test_what_go_takes_is_taken(tmp_path: Path, text: str, field: str, value: Any) -> None:
    got = getattr(options(tmp_path, f"name: m\n{text}\n"), field)
    if field == "EngineArgs":
        assert got == '{"a": "on", "b": "2024-01-01", "c": 1.5}'
    else:
        assert (list(got) if isinstance(value, list) else got) == value


@pytest.mark.parametrize("name", ["2024-01-01", "1.10", "on", "="])
def test_a_name_is_as_it_is_written(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, f"name: {name}\n").name == name


@pytest.mark.parametrize("field", ["context_size", "swap_space", "gpu_layers"])
def test_a_number_that_the_wire_has_no_room_for_is_named(tmp_path: Path, field: str) -> None:
    error = read(tmp_path, f"name: m\n{field}: 99999999999\n").error
    assert error is not None and field in error.message


def test_what_is_no_yaml_is_refused_with_its_place(tmp_path: Path) -> None:
    error = read(tmp_path, 'name: m\nx: "\\q"\n').error
    assert error is not None and "line 2" in error.message
