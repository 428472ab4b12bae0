"""The fields of LoadModel's request to a backend, and where each value comes from.

The fields are those of `backend.ModelOptions`, the mapping is LocalAI's.
Pure: the model file has already been read.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from services.loader.backends.names import TYPE_ALIASES
from services.loader.devices.devices import RAM
from services.loader.memory.estimate import Usage, estimate
from services.loader.models.config import ModelConfig

from .defaults import (
    ALL_GPU_LAYERS,
    Facts,
    Source,
    Value,
    batch,
    context_size,
    engine_args,
    options,
)

_LARGEST_SEED: Final = 2**31 - 1
_NO_MMAP: Final = ("intel", "sycl")

_AS_WRITTEN: Final[Mapping[str, str]] = {
    "MLock": "mmlock",
    "LowVRAM": "low_vram",
    "NUMA": "numa",
    "MainGPU": "main_gpu",
    "TensorSplit": "tensor_split",
    "RopeFreqBase": "parameters.rope_freq_base",
    "RopeFreqScale": "parameters.rope_freq_scale",
    "RopeScaling": "rope_scaling",
    "YarnExtFactor": "yarn_ext_factor",
    "YarnAttnFactor": "yarn_attn_factor",
    "YarnBetaFast": "yarn_beta_fast",
    "YarnBetaSlow": "yarn_beta_slow",
    "RMSNormEps": "rms_norm_eps",
    "NGQA": "ngqa",
    "NoMulMatQ": "no_mulmatq",
    "Tokenizer": "parameters.tokenizer",
    "LoraAdapter": "lora_adapter",
    "LoraBase": "lora_base",
    "LoraScale": "lora_scale",
    "LoraAdapters": "lora_adapters",
    "LoraScales": "lora_scales",
    "NoKVOffload": "no_kv_offloading",
    "CacheTypeKey": "cache_type_k",
    "CacheTypeValue": "cache_type_v",
    "Quantization": "quantization",
    "LoadFormat": "load_format",
    "GPUMemoryUtilization": "gpu_memory_utilization",
    "TrustRemoteCode": "trust_remote_code",
    "EnforceEager": "enforce_eager",
    "SwapSpace": "swap_space",
    "MaxModelLen": "max_model_len",
    "TensorParallelSize": "tensor_parallel_size",
    "DisableLogStatus": "disable_log_stats",
    "DType": "dtype",
    "PipelineType": "diffusers.pipeline_type",
    "SchedulerType": "diffusers.scheduler_type",
    "CFGScale": "diffusers.cfg_scale",
    "IMG2IMG": "diffusers.img2img",
    "CLIPModel": "diffusers.clip_model",
    "CLIPSubfolder": "diffusers.clip_subfolder",
    "CLIPSkip": "diffusers.clip_skip",
    "ControlNet": "diffusers.control_net",
    "AudioPath": "tts.audio_path",
    "Overrides": "overrides",
}
"""Fields that are sent as written in the configuration."""


def effective_values(
    config: ModelConfig, revision: str, backend: str, models_path: Path, facts: Facts
) -> dict[str, Value]:
    """Return the value of each field of LoadModel's request for a backend.

    The same arguments give the same values. This includes the seed of a model that asks for a random
    one, which changes with the revision and with each start of the loader.
    """
    values = {field: _written(config, path) for field, path in _AS_WRITTEN.items()}
    values |= _files(config, models_path)
    values |= _usecases(config)
    layers = _or(config.gpu_layers, "gpu_layers", Value(ALL_GPU_LAYERS))
    values["NGPULayers"] = layers

    def needs(context: int) -> int:
        usage = replace(usage_of(values), context_size=context)
        memory = estimate(config, models_path, facts.header, usage, facts.gpus).memory
        return sum(size for device, size in memory.items() if device != RAM)

    values["ContextSize"] = context_size(config, facts, needs)
    values["NBatch"] = batch(config, facts, values["ContextSize"].value)
    values["Options"] = options(config, backend, facts)
    arguments = engine_args(config, backend)
    text = json.dumps(arguments.value, default=str) if arguments.value else ""
    values["EngineArgs"] = replace(arguments, value=text)
    values["Seed"] = _seed(config, revision)
    values["F16Memory"] = _f16(config, facts)
    values["MMap"] = _mmap(config, backend, facts)
    values["Threads"] = _threads(config, facts)
    values["Type"] = _type(config)
    values["FlashAttention"] = _or(config.flash_attention, "flash_attention", Value("auto"))
    values["CUDA"] = _first(config, "cuda", "diffusers.cuda")
    for kind in ("image", "video", "audio"):
        path = ("limit_mm_per_prompt", kind)
        limit = config.limit_mm_per_prompt.get(kind)
        name = f"Limit{kind.capitalize()}PerPrompt"
        values[name] = Value(0) if limit is None else Value(limit, Source.CONFIG, path=path)
    triggers = [{"word": trigger.word} for trigger in config.function.grammar.triggers]
    values["GrammarTriggers"] = _or(triggers, "function.grammar.triggers", Value([]))
    if config.proxy is not None:
        values["Proxy"] = Value(config.proxy.model_dump(), Source.CONFIG, path=("proxy",))
    return values


def sent(values: Mapping[str, Value]) -> dict[str, Any]:
    """Return the bare values, by the field of LoadModel's request."""
    return {field: value.value for field, value in values.items()}


def usage_of(values: Mapping[str, Value]) -> Usage:
    """Return the values that determine memory use."""
    size = values.get("ContextSize")
    return Usage(
        context_size=size.value if size else 0,
        gpu_layers=values["NGPULayers"].value,
        cache_type_key=values["CacheTypeKey"].value,
        cache_type_value=values["CacheTypeValue"].value,
        no_kv_offload=values["NoKVOffload"].value,
        tensor_split=values["TensorSplit"].value,
        main_gpu=values["MainGPU"].value,
    )


def _written(config: ModelConfig, path: str) -> Value:
    """Return the value at a path of the configuration, or its default."""
    value = attrgetter(path)(config)
    return Value(value, Source.CONFIG, path=_steps(path)) if _stands(config, path) else Value(value)


def _stands(config: ModelConfig, path: str) -> bool:
    section: Any = config
    for step in path.split("."):
        if step not in section.model_fields_set:
            return False
        section = getattr(section, step)
    return True


def _steps(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


def _or(value: Any, path: str, otherwise: Value) -> Value:
    """Return the configured value, or `otherwise` if it is empty."""
    if value is None or value in ("", []):
        return otherwise
    return Value(value, Source.CONFIG, path=_steps(path))


def _first(config: ModelConfig, *paths: str) -> Value:
    """Return the first true value among the paths, otherwise the first configured one."""
    found = [_written(config, path) for path in paths]
    true = (value for value in found if value.value)
    stands = (value for value in found if value.source is Source.CONFIG)
    return next(true, next(stands, found[0]))


def _files(config: ModelConfig, models_path: Path) -> dict[str, Value]:
    model = _written(config, "parameters.model")
    full = str(models_path / config.model) if config.model else ""
    files = {
        "Model": model,
        "ModelFile": replace(model, value=full),
        "ModelPath": Value(str(models_path), Source.SETTINGS, "--models-path"),
    }
    for field, path in (("DraftModel", "draft_model"), ("MMProj", "mmproj")):
        written = _written(config, path)
        below = str(models_path / written.value) if written.value else ""
        files[field] = replace(written, value=below)
    return files


def _usecases(config: ModelConfig) -> dict[str, Value]:
    values = {}
    for field, path, usecase in (
        ("Embeddings", "embeddings", "embeddings"),
        ("Reranking", "reranking", "rerank"),
        ("EnableScore", "", "score"),
    ):
        if usecase in map(str.lower, config.known_usecases):
            values[field] = Value(True, Source.CONFIG, path=("known_usecases",))
        else:
            values[field] = _written(config, path) if path else Value(False)
        if path and getattr(config, path):
            values[field] = _written(config, path)
    return values


# Drawn once, so that a preview of the options shows the seed that will be sent.
_OWN: Final = random.SystemRandom().random()


def _seed(config: ModelConfig, revision: str) -> Value:
    wanted = config.parameters.seed
    path = ("parameters", "seed")
    if wanted is None or wanted < 0:
        drawn = random.Random(f"{_OWN}/{config.name}/{revision}").randint(0, _LARGEST_SEED)
        return Value(drawn, Source.DEFAULT, "drawn at random")
    if wanted > _LARGEST_SEED:
        # Programs draw 64-bit seeds; the wire has 31 bits. Equal seeds still give equal results.
        return Value(wanted & _LARGEST_SEED, Source.CONFIG, "cut to 31 bits", path)
    return Value(wanted, Source.CONFIG, path=path)


def _f16(config: ModelConfig, facts: Facts) -> Value:
    if config.f16 is None and facts.settings.f16:
        return Value(True, Source.SETTINGS, "--f16")
    return _or(config.f16, "f16", Value(False))


def _mmap(config: ModelConfig, backend: str, facts: Facts) -> Value:
    if any(word in backend.lower() for word in _NO_MMAP):
        return Value(False, Source.BACKEND, f"{backend} cannot map files")
    if config.mmap is None and facts.settings.xpu:
        return Value(False, Source.SETTINGS, "XPU is set")
    return _or(config.mmap, "mmap", Value(True))


def _threads(config: ModelConfig, facts: Facts) -> Value:
    if config.threads is not None and config.threads > 0:
        return Value(config.threads, Source.CONFIG, path=("threads",))
    if facts.settings.threads:
        return Value(facts.settings.threads, Source.SETTINGS, "--threads")
    return Value(0, Source.DEFAULT, "the backend chooses")


def _type(config: ModelConfig) -> Value:
    implied = TYPE_ALIASES.get(config.backend.lower(), "")
    if config.type or not implied:
        return _written(config, "type")
    return Value(implied, Source.BACKEND, f"backend is {config.backend}", ("backend",))
