"""What the names of LocalAI's builds mean: the engine, and the hardware that a build needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.backends.known_engines import Facts, facts
from services.loader.backends.names import (
    NAME_ALIASES,
    TYPE_ALIASES,
    alternatives,
    base_name,
    preference,
    requirements,
    unmet,
)

# The concrete builds in LocalAI's index of backends: an engine's prefix, and what it requires.
HARDWARE = {
    "cpu-": (),
    "cuda12-": ("nvidia-cuda-12",),
    "cuda13-": ("nvidia-cuda-13",),
    "cuda13-nvidia-l4t-arm64-": ("nvidia-l4t-cuda-13",),
    "intel-": ("intel",),
    "intel-sycl-f16-": ("intel",),
    "intel-sycl-f32-": ("intel",),
    "metal-": ("metal",),
    "metal-darwin-arm64-": ("metal",),
    "nvidia-l4t-": ("nvidia-l4t",),
    "nvidia-l4t-arm64-": ("nvidia-l4t",),
    "rocm-": ("amd",),
    "sycl-f16-": ("intel",),
    "vulkan-": ("vulkan",),
    "": (),
}
ENGINES = (
    *("llama-cpp", "bonsai", "whisper", "moss-transcribe-cpp", "trellis2cpp", "transformers"),
    *("ace-step", "piper", "silero-vad", "local-store", "speaker-recognition", "vllm", "diffusers"),
)


@pytest.mark.parametrize("prefix", HARDWARE)
def test_every_build_is_known(prefix: str) -> None:
    for engine in ENGINES:
        for suffix in ("", "-development", "-quantization", "-master"):
            name = prefix + engine + suffix
            assert base_name(name) == engine
            assert requirements(name) == HARDWARE[prefix]
            assert facts(name) == facts(engine) != Facts()


@pytest.mark.parametrize("name", ["llama.cpp", "LLAMA-CPP", "llama_cpp", "Cuda12-Llama.Cpp"])
def test_spellings(name: str) -> None:
    assert facts(name).formats == ("gguf",)


def test_words_count_and_not_letters() -> None:
    for name in ("chipmunk", "amd64-tool", "whipper", "metallurgy", "intelligence", "cudabra"):
        assert requirements(name) == ()
    assert requirements("mlx-vlm") == ("metal",)


def test_a_name_of_its_own_wins_over_what_it_is_made_of() -> None:
    assert facts("transformers-musicgen").usecases == ("tts", "sound_generation")
    assert facts("faster-whisper") != facts("whisper")
    assert facts("unheard-of") == facts("metal-unheard-of") == Facts()


def test_aliases() -> None:
    assert alternatives("Go-Llama") == ("Go-Llama", "go-llama", "llama-cpp")
    assert "llama-cpp" in alternatives("llama.cpp")
    assert "huggingface" in alternatives("langchain-huggingface")
    assert TYPE_ALIASES.keys() <= NAME_ALIASES.keys()


@pytest.mark.parametrize(
    ("need", "capability", "met"),
    [
        ("nvidia-cuda-12", "nvidia", True),
        ("nvidia-cuda-13", "nvidia-cuda-12", True),
        ("nvidia-cuda-12", "default", False),
        ("nvidia-cuda-12", "amd", False),
        ("nvidia-l4t", "nvidia-l4t-cuda-12", True),
        ("nvidia-l4t", "nvidia-cuda-12", False),
        ("metal", "darwin-x86", True),
        ("metal", "vulkan", False),
        ("vulkan", "default", True),
        ("intel", "intel", True),
        ("amd", "disable", True),
    ],
)
def test_what_a_machine_serves(need: str, capability: str, met: bool) -> None:
    assert (unmet((need,), capability) == "") is met


def test_orders_of_preference() -> None:
    builds = ["cpu-x", "cuda12-x", "nvidia-l4t-arm64-x", "vulkan-x", "rocm-x", "intel-sycl-f16-x"]

    def ranked(capability: str) -> list[str]:
        places = [
            (place, name) for name in builds if (place := preference(name, capability)) is not None
        ]
        return [name for _, name in sorted(places)]

    assert ranked("nvidia-cuda-12") == ["cuda12-x", "vulkan-x", "cpu-x"]
    assert ranked("nvidia-l4t") == ["nvidia-l4t-arm64-x", "cuda12-x", "vulkan-x", "cpu-x"]
    assert ranked("amd") == ["rocm-x", "vulkan-x", "cpu-x"]
    assert ranked("intel") == ["intel-sycl-f16-x", "cpu-x"]
    assert ranked("default") == ranked("made-up") == ["cpu-x"]


@given(st.text(), st.text())
def test_any_text_is_a_name(name: str, capability: str) -> None:
    assert alternatives(name)[0] == name
    assert base_name(base_name(name)) == base_name(name)
    assert unmet(requirements(name), "disable") == ""
    preference(name, capability)
