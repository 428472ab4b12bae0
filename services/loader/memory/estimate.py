"""How much memory a model will need, before it is loaded: an estimate, or its configured value.

For GGUF: the weights, the attention's keys and values for the whole context, and a margin, after
LocalAI's estimate. For anything else: the size of its files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from services.loader.devices.devices import RAM
from services.loader.models.config import ANY_DEVICE, ModelConfig
from services.loader.models.gguf import Header, shards

from .reservation import Basis, Reservation

MARGIN_SHARE: Final = 0.04
"""Part of the weights that is added for working memory (LocalAI: 2 % of twice the size)."""
MARGIN_BYTES: Final = 150_000_000
"""Added for the program itself (LocalAI: 0.15 GB)."""
_MOST_FILES: Final = 10_000
"""Files of a model's folder to count."""

# Bytes for each number: blocks of 32 have a scale each.
_CACHE_BYTES: Final[Mapping[str, Fraction]] = {
    "f32": Fraction(4),
    "f16": Fraction(2),
    "bf16": Fraction(2),
    "q8_0": Fraction(34, 32),
    "q5_1": Fraction(24, 32),
    "q5_0": Fraction(22, 32),
    "q4_1": Fraction(20, 32),
    "q4_0": Fraction(18, 32),
    "iq4_nl": Fraction(18, 32),
}


@dataclass(frozen=True, slots=True)
class Usage:
    """The fields of LoadModel's request that determine memory, under their own names."""

    context_size: int
    gpu_layers: int
    cache_type_key: str = ""
    cache_type_value: str = ""
    no_kv_offload: bool = False
    tensor_split: str = ""
    main_gpu: str = ""


def estimate(
    config: ModelConfig,
    models_path: Path,
    header: Header | None,
    usage: Usage,
    gpus: Mapping[str, int],
) -> Reservation:
    """Return the model's memory needs on a machine with these GPUs (`gpu0` and so on, with their
    bytes).

    `header` is that of a GGUF file. Reads file sizes, and nothing else outside its arguments.
    """
    if config.memory:
        return _configured(config.memory, usage, gpus)
    weights = header.size if header else size_of(models_path / config.model) if config.model else 0
    if not weights:
        return Reservation()
    extras = sum(size_of(models_path / name) for name in _companions(config))
    keys_and_values = kv_bytes(header, usage) if header else 0
    margin = round(MARGIN_SHARE * weights) + MARGIN_BYTES
    share = _offloaded(header, usage) if gpus else Fraction(0)
    if not share:
        return Reservation({RAM: weights + extras + keys_and_values + margin})
    on_gpus = round((weights + extras) * share) + margin
    if not usage.no_kv_offload:
        on_gpus += round(keys_and_values * share)
    rest = weights + extras + keys_and_values + margin - on_gpus
    return Reservation({RAM: rest + MARGIN_BYTES, **_split(on_gpus, usage, gpus)})


def kv_bytes(header: Header, usage: Usage) -> int:
    """Return the bytes of the attention's keys and values, for the context of all slots together.

    llama.cpp's `ContextSize` is shared by its slots, so their number does not count. What it saves with
    sliding windows is not taken off.
    """
    key_bytes = cache_bytes(usage.cache_type_key)
    value_bytes = cache_bytes(usage.cache_type_value)
    if latent := header.number("attention.kv_lora_rank"):
        # Multi-head latent attention keeps one compressed vector a layer.
        width = latent + header.number("rope.dimension_count")
        return round(header.layers * width * key_bytes * usage.context_size)
    even = header.embedding // header.heads if header.heads else 0
    key = header.number("attention.key_length") or even
    value = header.number("attention.value_length") or even
    each = key * key_bytes + value * value_bytes
    return round(sum(header.kv_heads) * each * usage.context_size)


def cache_bytes(name: str) -> Fraction:
    """Return the bytes of one number in a cache of that type; llama.cpp's default is f16."""
    return _CACHE_BYTES.get(name.lower(), _CACHE_BYTES["f16"])


def size_of(path: Path) -> int:
    """Return the bytes of a file with all its parts, or of a folder; 0 if there is none."""
    try:
        if path.is_dir():
            return sum(_sizes(path))
        return sum(part.stat().st_size for part in shards(path) if part.is_file())
    except (OSError, ValueError):
        return 0


def _sizes(folder: Path) -> Iterator[int]:
    left = _MOST_FILES
    for place, _, names in os.walk(folder):
        for name in names[:left]:
            try:
                yield os.stat(os.path.join(place, name)).st_size
            except OSError:
                continue
        left -= len(names)
        if left <= 0:
            return


def _companions(config: ModelConfig) -> Sequence[str]:
    names = [config.mmproj, config.draft_model, config.lora_adapter, *config.lora_adapters]
    return [name for name in dict.fromkeys(names) if name and name != config.model]


def _configured(needs: Mapping[str, int], usage: Usage, gpus: Mapping[str, int]) -> Reservation:
    devices = {device: size for device, size in needs.items() if device != ANY_DEVICE}
    if anywhere := needs.get(ANY_DEVICE):
        devices |= _split(anywhere, usage, gpus) if gpus and usage.gpu_layers else {RAM: anywhere}
    return Reservation(devices, Basis.CONFIGURED)


def _offloaded(header: Header | None, usage: Usage) -> Fraction:
    """Return the part of the weights that goes to the GPUs: layers, and one for the output."""
    if usage.gpu_layers < 0:
        return Fraction(1)  # llama.cpp: all
    if header is None or not header.layers:
        return Fraction(1 if usage.gpu_layers else 0)
    return min(Fraction(usage.gpu_layers, header.layers + 1), Fraction(1))


def _split(size: int, usage: Usage, gpus: Mapping[str, int]) -> dict[str, int]:
    """Share bytes out over the GPUs: by `tensor_split` if given, otherwise by their size."""
    names = sorted(gpus, key=lambda name: (len(name), name))
    shares = _shares(usage.tensor_split, len(names)) or [max(gpus[name], 0) for name in names]
    total = sum(shares)
    if not total:
        return {names[0]: size}
    parts = {
        name: round(size * Fraction(share) / Fraction(total))
        for name, share in zip(names, shares, strict=True)
    }
    return {name: part for name, part in parts.items() if part}


def _shares(text: str, count: int) -> list[float]:
    try:
        shares = [float(part) for part in text.replace("/", ",").split(",") if part.strip()]
    except ValueError:
        return []
    shares = (shares + [0.0] * count)[:count]
    usable = all(0 <= share < float("inf") for share in shares) and sum(shares) > 0
    return shares if usable else []
