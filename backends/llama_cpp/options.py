"""ModelOptions as a plan for the engine: what is set, what is ignored, what is wrong."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corral.backend import backend_pb2 as pb

from . import settings
from .errors import InvalidRequest, Missing
from .gguf import Header
from .settings import Enum

# LocalAI's own default, where llama.cpp would take the model's whole training context.
DEFAULT_CONTEXT = 4096
DEFAULT_MAX_QUEUE = 256
# More than one only pays on idle cores, and costs a factor of ten on busy ones.
DEFAULT_THREADS = 1
# An encoder needs its whole input in one batch; the buffers for it grow with it.
MAX_ENCODER_BATCH = 2048
TENSOR_SPLIT = 128
PARALLEL_VARIABLE = "LLAMACPP_PARALLEL"

_ON, _OFF = settings.TRUE, settings.FALSE
_WHY_IGNORED = {
    "LowVRAM": "use NoKVOffload",
    "LoraBase": "llama.cpp needs no base model for an adapter",
    "Overrides": "the engine has no metadata overrides",
    "EnableScore": "Score is not offered",
    "VocabOnly": "a model is always loaded whole",
}
_HANDLED = frozenset(
    [
        *("Model", "ModelFile", "ModelPath"),
        *("ContextSize", "Seed", "NBatch", "F16Memory", "MLock", "MMap", "Embeddings", "Reranking"),
        *("NUMA", "NGPULayers", "MainGPU", "TensorSplit", "Threads"),
        *(
            "RopeFreqBase",
            "RopeFreqScale",
            "RopeScaling",
            "YarnExtFactor",
            "YarnAttnFactor",
            "YarnBetaFast",
            "YarnBetaSlow",
        ),
        *("LoraAdapter", "LoraScale", "LoraAdapters", "LoraScales", "DraftModel", "MMProj"),
        *(
            "FlashAttention",
            "NoKVOffload",
            "Options",
            "CacheTypeKey",
            "CacheTypeValue",
            "GrammarTriggers",
            "Type",
        ),
    ]
)
_FLOATS = {
    "RopeFreqBase": "rope_freq_base",
    "RopeFreqScale": "rope_freq_scale",
    "YarnExtFactor": "yarn_ext_factor",
    "YarnAttnFactor": "yarn_attn_factor",
    "YarnBetaFast": "yarn_beta_fast",
    "YarnBetaSlow": "yarn_beta_slow",
}


@dataclass(frozen=True)
class Plan:
    """Everything a load needs: parameters by path, and what was ignored."""

    path: Path
    parameters: dict[str, Any]
    adapters: tuple[tuple[str, float], ...] = ()
    triggers: tuple[str, ...] = ()
    max_queue: int = DEFAULT_MAX_QUEUE
    reuse: bool = True
    """Whether a request that does not ask for it reuses what the engine has read already, as in LocalAI."""
    may_reuse: bool = True
    """Whether any request may: off, a prompt gives the same answer whatever was asked before it."""
    ignored: tuple[str, ...] = ()

    def reuses(self, asked: bool) -> bool:
        """Whether a request reads only the part of its prompt that is new.

        `asked` is PromptCacheAll. Proto3's false also means unset, so it can only ask for reuse.
        """
        return self.may_reuse and (self.reuse or asked)

    @property
    def parallel(self) -> int:
        """How many requests the engine works on at once."""
        return int(self.parameters["n_parallel"])


@dataclass
class _Draft:
    """A plan in the making."""

    parameters: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def model_path(options: pb.ModelOptions) -> Path:
    """The model's file: ModelFile if set, otherwise ModelPath/Model.

    Raises:
        InvalidRequest: neither is given.
    """
    if options.ModelFile:
        return Path(options.ModelFile)
    if not options.Model:
        raise InvalidRequest("no model: set ModelFile, or Model with ModelPath")
    return Path(options.ModelPath) / options.Model


def ignored_fields(options: pb.ModelOptions) -> list[str]:
    """The fields that are set and mean nothing to llama.cpp, each with the reason."""
    return [
        f"{name} ({_WHY_IGNORED.get(name, 'not used by llama.cpp')})"
        for name in (descriptor.name for descriptor, _ in options.ListFields())
        if name not in _HANDLED
    ]


def plan(options: pb.ModelOptions, header: Header, env: Mapping[str, str] = os.environ) -> Plan:
    """Work out the engine's parameters.

    Raises:
        InvalidRequest: a value can not be understood; the text names the field and the remedy.
        Missing: an adapter, a draft model or a projector does not exist.
    """
    draft = _Draft(ignored=ignored_fields(options))
    _defaults(draft.parameters, options, header)
    _numbers(draft.parameters, options)
    _placement(draft.parameters, options)
    _companions(draft.parameters, options, header.path.parent)
    if (parallel := env.get(PARALLEL_VARIABLE, "")).isdigit() and int(parallel) > 0:
        draft.parameters["n_parallel"] = int(parallel)
    _embedding(draft, options, header)
    _lines(draft, options)
    _context(draft.parameters, options, header)
    # The engine itself cuts a batch to the micro batch where whole inputs must fit.
    draft.parameters.setdefault("n_ubatch", draft.parameters.get("n_batch", 512))
    max_queue = draft.parameters.pop("max_queue", DEFAULT_MAX_QUEUE)
    reuse = draft.parameters.pop("prompt_cache_all", True)
    may_reuse = draft.parameters.pop("cache_prompt", True)
    return Plan(
        path=header.path,
        parameters=draft.parameters,
        adapters=_adapters(options, header.path.parent),
        triggers=tuple(trigger.word for trigger in options.GrammarTriggers if trigger.word),
        max_queue=max_queue,
        reuse=reuse,
        may_reuse=may_reuse,
        ignored=tuple(draft.ignored),
    )


def _defaults(out: dict[str, Any], options: pb.ModelOptions, header: Header) -> None:
    out["model.path"] = str(header.path)
    out["n_parallel"] = 1
    threads = options.Threads if options.Threads > 0 else DEFAULT_THREADS
    out["cpuparams.n_threads"] = out["cpuparams_batch.n_threads"] = threads
    out["warmup"] = False
    out["fit_params"] = False
    # The engine's default is 8 GiB: memory would grow with every new prompt.
    out["cache_ram_mib"] = 0
    out["verbosity"] = 1


def _numbers(out: dict[str, Any], options: pb.ModelOptions) -> None:
    if options.NBatch < 0:
        raise InvalidRequest("NBatch must not be negative; 0 takes the default")
    if options.NBatch:
        # Both, as in LocalAI: long inputs of rerankers must fit one micro batch.
        out["n_batch"] = out["n_ubatch"] = options.NBatch
    if options.Seed > 0:
        out["sampling.seed"] = options.Seed
    for name, path in _FLOATS.items():
        if value := getattr(options, name):
            out[path] = value
    for name, path in (("CacheTypeKey", "cache_type_k"), ("CacheTypeValue", "cache_type_v")):
        if text := getattr(options, name):
            out[path] = _field(name, settings.cache_type, text)
    if options.RopeScaling:
        out["rope_scaling_type"] = _field("RopeScaling", settings.rope_scaling, options.RopeScaling)
    if options.FlashAttention:
        out["flash_attn_type"] = _field("FlashAttention", _flash, options.FlashAttention)


def _field(name: str, parse: settings.Parser, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidRequest(f"{name}: {error}") from error


def _flash(text: str) -> Enum:
    word = text.strip().lower()
    names = {"AUTO": {"auto"}, "ENABLED": _ON, "DISABLED": _OFF}
    for name, words in names.items():
        if word in words:
            return Enum("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_" + name)
    raise ValueError(f"{text!r} is not one of auto, on, off")


def _placement(out: dict[str, Any], options: pb.ModelOptions) -> None:
    """Where weights and caches live."""
    mode = "MMAP" if options.MMap else "NONE"
    if options.MLock:
        mode = "MMAP_MLOCK" if options.MMap else "MLOCK"
    out["load_mode"] = Enum("llama_load_mode", "LLAMA_LOAD_MODE_" + mode)
    out["n_gpu_layers"] = options.NGPULayers
    if options.MainGPU:
        out["main_gpu"] = _field("MainGPU", settings.whole(low=0), options.MainGPU)
    if options.TensorSplit:
        out["tensor_split"] = _field("TensorSplit", _split, options.TensorSplit)
    if options.NoKVOffload:
        out["no_kv_offload"] = True
    if options.NUMA:
        out["numa"] = Enum("ggml_numa_strategy", "GGML_NUMA_STRATEGY_DISTRIBUTE")


def _split(text: str) -> list[float]:
    shares = [float(part) for part in text.replace("/", ",").split(",") if part.strip()]
    if len(shares) > TENSOR_SPLIT:
        raise ValueError(f"more than {TENSOR_SPLIT} devices")
    return shares + [0.0] * (TENSOR_SPLIT - len(shares))


def _find(name: str, text: str, folder: Path) -> str:
    """A companion file: as given, or next to the model."""
    for path in (Path(text), folder / text):
        if path.is_file():
            return str(path)
    raise Missing(f"{name}: file {text!r} does not exist, nor in {str(folder)!r}")


def _companions(out: dict[str, Any], options: pb.ModelOptions, folder: Path) -> None:
    if options.MMProj:
        out["mmproj.path"] = _find("MMProj", options.MMProj, folder)
    if options.DraftModel:
        out["speculative.draft.mparams.path"] = _find("DraftModel", options.DraftModel, folder)
        out["speculative.types"] = [
            Enum("common_speculative_type", "COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE")
        ]


def _adapters(options: pb.ModelOptions, folder: Path) -> tuple[tuple[str, float], ...]:
    scales = list(options.LoraScales)
    if scales and len(scales) != len(options.LoraAdapters):
        raise InvalidRequest(
            f"LoraScales: {len(scales)} scales for {len(options.LoraAdapters)} LoraAdapters"
        )
    pairs = [(text, scales[n] if scales else 1.0) for n, text in enumerate(options.LoraAdapters)]
    if options.LoraAdapter:
        pairs.append((options.LoraAdapter, options.LoraScale or 1.0))
    return tuple((_find("LoraAdapter", text, folder), scale) for text, scale in pairs)


def _embedding(draft: _Draft, options: pb.ModelOptions, header: Header) -> None:
    kind = options.Type.strip().lower()
    rerank = options.Reranking or header.is_reranker or kind in ("rerank", "reranker")
    embed = options.Embeddings or header.is_encoder or header.pooling is not None
    embed = embed or rerank or kind in ("embedding", "embeddings")
    if options.Type and kind not in ("rerank", "reranker", "embedding", "embeddings"):
        draft.ignored.append("Type (llama.cpp reads the architecture from the file)")
    if not embed:
        return
    out = draft.parameters
    out["embedding"] = True
    if rerank:
        out["pooling_type"] = settings.pooling("rank")
    elif header.pooling is None and not header.is_encoder:
        # One vector for each text, where llama.cpp would give one for each token.
        out["pooling_type"] = settings.pooling("mean")


def _context(out: dict[str, Any], options: pb.ModelOptions, header: Header) -> None:
    """The context of all slots together; a default one is counted for each slot."""
    if options.ContextSize < 0:
        raise InvalidRequest("ContextSize must not be negative; 0 takes the default")
    trained = header.context_length or DEFAULT_CONTEXT
    slots = out["n_parallel"]
    out["n_ctx"] = options.ContextSize or min(trained, DEFAULT_CONTEXT) * slots
    if header.is_encoder:
        # More positions than the model knows would read past its position table.
        out["n_ctx"] = min(out["n_ctx"], trained * slots)
    if out.get("embedding") and "n_batch" not in out:
        out["n_batch"] = out["n_ubatch"] = min(out["n_ctx"], MAX_ENCODER_BATCH)


def _lines(draft: _Draft, options: pb.ModelOptions) -> None:
    for line in options.Options:
        known = settings.read(line)
        if known is None:
            draft.ignored.append(f"Options[{line.partition(':')[0]}] (unknown)")
            continue
        setting, value = known
        if setting.path == "direct_io":
            if value:
                mode = Enum("llama_load_mode", "LLAMA_LOAD_MODE_DIRECT_IO")
                draft.parameters["load_mode"] = mode
            continue
        draft.parameters[setting.path] = value
