"""Which backends are tried for a model, in which order, and why the others are not."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import BackendNotFoundError
from services.loader.backends.backend import Backend
from services.loader.backends.builds import resolve
from services.loader.backends.catalog import BackendCatalog
from services.loader.backends.known_engines import facts
from services.loader.backends.names import requirements
from services.loader.backends.selection import Selection, select
from services.loader.models.config import ModelConfig


class Listed:
    """A source with these backends, as if they were installed."""

    def __init__(self, *names: str, **more: Any) -> None:
        self.backends = [
            Backend(
                name,
                run_file=Path("/backends", name),
                requires=requirements(name),
                formats=facts(name).formats,
                usecases=facts(name).usecases,
                **more,
            )
            for name in names
        ]

    def read(self) -> list[Backend]:
        return self.backends

    def problem(self) -> str:
        return ""


def chosen(model: Path, *sources: Listed, **settings: Any) -> Selection:
    config = ModelConfig.model_validate({"name": "m", **settings})
    catalog = BackendCatalog(sources)
    return select(config, model, catalog.backends(), catalog.find)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    return path


def test_a_gguf_goes_to_those_that_read_it_llama_cpp_first(gguf: Path) -> None:
    """Not to the first in the alphabet: LocalAI's issue 9287, where opus won."""
    names = ("bonsai", "opus", "piper", "llama-cpp", "whisper", "qwen3-tts-cpp", "unheard-of")
    selection = chosen(gguf, Listed(*names))
    assert selection.names == ("llama-cpp", "bonsai")
    assert selection.excluded["piper"] == "it reads onnx files, not gguf"
    assert "for tts" in selection.excluded["qwen3-tts-cpp"]
    assert "does not list" in selection.excluded["unheard-of"]
    assert set(selection.names) | set(selection.excluded) == set(names)


def test_one_that_does_not_say_what_it_reads_is_better_than_none(gguf: Path) -> None:
    assert chosen(gguf, Listed("piper", "unheard-of")).names == ("unheard-of",)


def test_the_use_case_decides_among_those_that_read_it(gguf: Path) -> None:
    installed = Listed("llama-cpp", "qwen3-tts-cpp", "rfdetr-cpp", "face-detect")
    assert chosen(gguf, installed, known_usecases=["FLAG_DETECTION"]).names == (
        "face-detect",
        "rfdetr-cpp",
    )
    assert chosen(gguf, installed, known_usecases=["detection", "face_recognition"]).names == (
        "face-detect",
        "rfdetr-cpp",
    )
    assert chosen(gguf, installed, embeddings=True).names == ("llama-cpp", "face-detect")
    assert chosen(gguf, installed, reranking=True).names == ("llama-cpp",)
    assert chosen(gguf, installed, known_usecases=["llm"]).names == ("llama-cpp",)


def test_a_file_of_no_known_format(tmp_path: Path) -> None:
    installed = Listed("whisper", "huggingface", "vllm", "llama-cpp", "a-new-one")
    every = chosen(tmp_path / "org" / "repository", installed)
    assert every.names == ("llama-cpp", "a-new-one", "vllm", "whisper", "huggingface")
    speech = chosen(tmp_path / "missing", installed, known_usecases=["transcript"])
    assert speech.names == ("whisper", "a-new-one")


def test_those_that_cannot_be_used_are_left_out_with_their_cause(gguf: Path) -> None:
    broken = Listed("llama-cpp", error="it has no run.sh")
    silent = Listed("ik-llama-cpp", automatic=False)
    selection = chosen(gguf, broken, silent, Listed("cuda12-turboquant", "bonsai"))
    assert selection.names == ("bonsai",)
    assert selection.excluded["llama-cpp"] == "it has no run.sh"
    assert "needs nvidia-cuda-12" in selection.excluded["cuda12-turboquant"]
    assert "name it" in selection.excluded["ik-llama-cpp"]


def test_of_several_builds_one_is_tried(gguf: Path) -> None:
    builds = Listed("cpu-llama-cpp", "vulkan-llama-cpp", group="llama-cpp")
    selection = chosen(gguf, builds)
    assert selection.names == ("cpu-llama-cpp",)
    assert "llama-cpp is cpu-llama-cpp" in selection.excluded["vulkan-llama-cpp"]


def test_a_named_one_is_tried_and_no_other(gguf: Path) -> None:
    builds = Listed("cpu-llama-cpp", "cuda12-llama-cpp", group="llama-cpp")
    for name in ("llama-cpp", "LLAMA", "cpu-llama-cpp"):
        assert chosen(gguf, builds, backend=name).names == ("cpu-llama-cpp",)
    assert chosen(gguf, builds, backend="cuda12-llama-cpp").names == ("cuda12-llama-cpp",)
    with pytest.raises(BackendNotFoundError, match="^backend not found: whisper"):
        chosen(gguf, builds, backend="whisper")


def test_a_fallback_is_a_further_candidate(gguf: Path) -> None:
    fallback = Listed("llama-cpp-fallback", automatic=False)
    installed = (Listed("llama-cpp", fallback="llama-cpp-fallback"), fallback, Listed("bonsai"))
    assert chosen(gguf, *installed).names == ("llama-cpp", "llama-cpp-fallback", "bonsai")
    assert chosen(gguf, *installed, backend="llama-cpp").names == (
        "llama-cpp",
        "llama-cpp-fallback",
    )


def test_none_left_lists_every_reason(gguf: Path) -> None:
    broken = Listed("llama-cpp", error="it has no run.sh")
    with pytest.raises(BackendNotFoundError) as failed:
        chosen(gguf, broken, Listed("piper", "cuda12-bonsai"))
    text = failed.value.message
    assert text.startswith("no backends found")
    for line in (
        "[llama-cpp]: it has no run.sh",
        "[piper]: it reads onnx",
        "[cuda12-bonsai]: it needs",
    ):
        assert line in text
    with pytest.raises(BackendNotFoundError, match="no backends found"):
        chosen(gguf)


@given(st.permutations(["llama-cpp", "bonsai", "vllm", "piper", "unheard-of", "cuda12-ds4"]))
def test_the_order_does_not_depend_on_the_order_of_installation(names: list[str]) -> None:
    path = Path(__file__)
    found = [Backend(name, run_file=path, formats=facts(name).formats) for name in names]
    backends: Mapping[str, Backend] = resolve(found, "default").backends
    shuffled = dict(random.sample(list(backends.items()), len(backends)))

    def find(name: str) -> Backend:
        return backends[name]

    config = ModelConfig(name="m")
    first = select(config, path, backends, find)
    assert first == select(config, path, shuffled, find)
    assert not set(first.names) & set(first.excluded)
    assert set(first.names) | set(first.excluded) == set(names)
