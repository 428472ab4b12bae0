"""The meaning of backend names: LocalAI's aliases, and the hardware in the names of builds. Pure.

The rules are LocalAI's, except that they compare whole words of a name and not its letters: `amd64`
does not mean an AMD card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from services.loader.devices.capability import DISABLE

NAME_ALIASES: Mapping[str, str] = {
    "go-llama": "llama-cpp",
    "llama": "llama-cpp",
    "ik_llama": "ik-llama-cpp",
    "ik-llama": "ik-llama-cpp",
    "embedded-store": "local-store",
    "valkey": "valkey-store",
    "huggingface-embeddings": "transformers",
    "transformers-musicgen": "transformers",
    "sentencetransformers": "transformers",
    "mamba": "transformers",
    "stablediffusion": "stablediffusion-ggml",
    "langchain-huggingface": "huggingface",
}
"""LocalAI's other names for backends; the last one is of version 2 only."""

TYPE_ALIASES: Mapping[str, str] = {
    "sentencetransformers": "SentenceTransformer",
    "huggingface-embeddings": "SentenceTransformer",
    "mamba": "Mamba",
    "transformers-musicgen": "MusicgenForConditionalGeneration",
}
"""The model type that a name implies, by the requested name."""

_PREFERENCES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # LocalAI's row for NVIDIA serves its small boards too, and finds none of their builds.
    ("nvidia-l4t", ("l4t", "cuda", "vulkan", "cpu")),
    ("nvidia", ("cuda", "vulkan", "cpu")),
    ("amd", ("rocm", "hip", "vulkan", "cpu")),
    ("intel", ("sycl", "intel", "cpu")),
    ("metal", ("metal", "cpu")),
    ("darwin-x86", ("darwin-x86", "cpu")),
    ("vulkan", ("vulkan", "cpu")),
)
"""By the beginning of the machine's capability: the words to look for in the names of builds, best first."""

_SUFFIXES = ("-development", "-quantization", "-master")
_UNFINISHED = "-development", "-master"
_HARDWARE = re.compile(
    r"(cpu|gpu|cuda\d*|nvidia|l4t|rocm\d*|hip|hipblas|intel|sycl|sycl_16|sycl_32|f16|f32|vulkan|metal"
    r"|darwin|x86|arm64|amd64)-"
)


def alternatives(name: str) -> tuple[str, ...]:
    """Return the names to look for, in this order, when `name` is requested."""
    lowered = name.lower()
    dashed = lowered.replace(".", "-")
    names = (name, lowered, NAME_ALIASES.get(lowered, lowered), dashed)
    return tuple(dict.fromkeys((*names, NAME_ALIASES.get(dashed, dashed))))


def engine_names(name: str) -> tuple[str, ...]:
    """Return what a build may be a build of: its name, and that without hardware and release channel.

    `cuda12-llama-cpp-development` leads to `llama-cpp`; a name of its own comes first, so that an
    engine which is called `metal-something` is found as such.
    """
    normal = name.lower().replace(".", "-")
    names = [normal]
    for suffix in _SUFFIXES:
        normal = normal.removesuffix(suffix)
    names.append(normal)
    while match := _HARDWARE.match(normal):
        normal = normal[match.end() :]
        names.append(normal)
    if "_" in normal:
        names.append(normal.replace("_", "-"))
    return tuple(dict.fromkeys(names))


def base_name(name: str) -> str:
    """Return the engine's name alone: `llama-cpp` for `vulkan-llama-cpp`, and for `llama_cpp`."""
    return engine_names(name)[-1]


def is_development(name: str) -> bool:
    """Whether a build is not a release."""
    return name.lower().endswith(_UNFINISHED)


def requirements(name: str) -> tuple[str, ...]:
    """Return the capability that a build needs, by its name; empty if it runs anywhere."""
    words = re.split(r"[-_.]", name.lower())
    if any(word in ("metal", "darwin", "mlx") for word in words):
        return ("metal",)
    cuda = next((word for word in words if re.fullmatch(r"cuda\d*", word)), "")
    version = f"-cuda-{cuda.removeprefix('cuda')}" if len(cuda) > len("cuda") else ""
    if "l4t" in words:
        return (f"nvidia-l4t{version}",)
    if cuda or "nvidia" in words:
        return (f"nvidia{version}",)
    if any(re.fullmatch(r"rocm\d*|hip|hipblas|amd", word) for word in words):
        return ("amd",)
    if "sycl" in words or "intel" in words:
        return ("intel",)
    if "vulkan" in words:
        return ("vulkan",)
    return ()


def unmet(needs: tuple[str, ...], capability: str) -> str:
    """Return the first need that a machine of this capability cannot serve; empty if there is none.

    Only the maker of the hardware counts: a driver may well serve another version of CUDA than the
    one that is installed. Vulkan runs on all of it, and on processors.
    """
    if capability == DISABLE:
        return ""
    for need in needs:
        if need == "vulkan" or need.startswith("avx"):
            continue
        if need.startswith("nvidia-l4t"):
            served = capability.startswith("nvidia-l4t")
        elif need == "metal":
            served = capability.startswith(("metal", "darwin"))
        else:
            served = capability.startswith(need.partition("-")[0])
        if not served:
            return need
    return ""


def preference(name: str, capability: str) -> int | None:
    """Return the place of a build in this machine's order, 0 first; None if it is not in there."""
    words = next((words for start, words in _PREFERENCES if capability.startswith(start)), ("cpu",))
    lowered = "-" + name.lower().replace("_", "-").replace(".", "-")
    for place, word in enumerate(words):
        if f"-{word}" in lowered:
            return place
    return None
