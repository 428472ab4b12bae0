"""The `Options` of a model (`name:value` lines), as llama.cpp parameters.

The names are those of LocalAI's llama-cpp backend, and those of llama.cpp's own parameters.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import InvalidRequest

TRUE = frozenset({"true", "1", "yes", "on", "enabled"})
FALSE = frozenset({"false", "0", "no", "off", "disabled"})
# What llama.cpp can store keys and values of the attention in.
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


@dataclass(frozen=True)
class Enum:
    """A value of one of the engine's enumerations, by name, so that this needs no engine."""

    type: str
    name: str


Parser = Callable[[str], Any]


@dataclass(frozen=True)
class Setting:
    """Where an option goes (`a.b` of the engine's parameters) and how its text is read."""

    path: str
    parse: Parser


def boolean(text: str) -> bool:
    """Read a yes or no, in any of LocalAI's words."""
    word = text.strip().lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def whole(low: int | None = None, high: int | None = None) -> Parser:
    """A reader of integers between two bounds."""

    def parse(text: str) -> int:
        value = int(text)
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(f"{value} is not between {low} and {high}")
        return value

    return parse


def choice(type_name: str, prefix: str, *words: str) -> Parser:
    """A reader of one of an enumeration's words; `-` and `_` are the same."""

    def parse(text: str) -> Enum:
        word = text.strip().lower().replace("-", "_")
        if word not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return Enum(type_name, prefix + word.upper())

    return parse


def threads(text: str) -> int:
    """Read a number of threads; 0 or less means one for each CPU, as in LocalAI."""
    value = int(text)
    return value if value > 0 else os.cpu_count() or 1


def _object(text: str) -> dict[str, str]:
    """Read a JSON object whose values the engine takes as JSON texts."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError("it must be a JSON object")
    return {key: json.dumps(inner) for key, inner in value.items()}


def _cpu_experts(text: str) -> str:
    return r"\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU" if boolean(text) else ""


def _speculation(text: str) -> list[Enum]:
    names = []
    for word in filter(None, text.lower().replace("-", "_").split(",")):
        name = {"draft": "draft_simple", "eagle3": "draft_eagle3"}.get(word.strip(), word.strip())
        if name not in _SPECULATIONS:
            raise ValueError(f"{word!r} is not one of {', '.join(_SPECULATIONS)}")
        names.append(Enum("common_speculative_type", "COMMON_SPECULATIVE_TYPE_" + name.upper()))
    return names


_SPECULATIONS = (
    *("none", "draft_simple", "draft_eagle3", "draft_mtp", "ngram_simple"),
    *("ngram_map_k", "ngram_map_k4v", "ngram_mod", "ngram_cache"),
)
cache_type = choice("ggml_type", "GGML_TYPE_", *CACHE_TYPES)
pooling = choice("llama_pooling_type", "LLAMA_POOLING_TYPE_", "none", "mean", "cls", "last", "rank")
rope_scaling = choice(
    "llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE_", "none", "linear", "yarn", "longrope"
)
_count, _any = whole(low=0), whole()


def _table(*rows: tuple[str, Parser, str]) -> dict[str, Setting]:
    """The settings by name; the first name is the parameter unless there is a path."""
    table: dict[str, Setting] = {}
    for names, parse, path in rows:
        words = names.split()
        for word in words:
            table[word] = Setting(path or words[0], parse)
    return table


SETTINGS = _table(
    # Slots and context
    ("n_parallel parallel", whole(low=1, high=256), ""),
    ("max_queue", _count, ""),
    ("ctx_shift context_shift", boolean, ""),
    ("kv_unified unified_kv", boolean, ""),
    ("cont_batching continuous_batching", boolean, ""),
    ("n_keep", _any, ""),
    ("slot_prompt_similarity sps", float, ""),
    ("swa_full", boolean, ""),
    ("sleep_idle_seconds", whole(low=-1), ""),
    # Prompt cache
    ("prompt_cache_all", boolean, ""),
    ("cache_prompt", boolean, ""),
    ("cache_ram_mib cache_ram", whole(low=-1), ""),
    ("n_cache_reuse cache_reuse", _count, ""),
    ("cache_idle_slots idle_slots_cache", boolean, ""),
    ("n_ctx_checkpoints ctx_checkpoints", _count, ""),
    (
        "checkpoint_min_step checkpoint_min_spacing checkpoint_every_nt checkpoint_every_n_tokens",
        _count,
        "",
    ),
    # Batches and threads
    ("n_batch batch", whole(low=1), ""),
    ("n_ubatch ubatch", whole(low=1), ""),
    ("n_threads threads", threads, "cpuparams.n_threads"),
    ("n_threads_batch threads_batch", threads, "cpuparams_batch.n_threads"),
    ("poll", whole(low=0, high=100), "cpuparams.poll"),
    # Memory and devices
    ("n_gpu_layers gpu_layers", _any, ""),
    ("direct_io use_direct_io", boolean, ""),
    ("fit_params fit", boolean, ""),
    ("fit_params_min_ctx fit_ctx", _count, ""),
    ("no_op_offload", boolean, ""),
    ("no_kv_offload", boolean, ""),
    ("no_host", boolean, ""),
    ("no_extra_bufts", boolean, ""),
    ("check_tensors", boolean, ""),
    ("tensor_buft_overrides override_tensor", str, ""),
    ("cpu_moe", _cpu_experts, "tensor_buft_overrides"),
    (
        "split_mode sm",
        choice("llama_split_mode", "LLAMA_SPLIT_MODE_", "none", "layer", "row", "tensor"),
        "",
    ),
    ("cache_type_k", cache_type, ""),
    ("cache_type_v", cache_type, ""),
    ("warmup", boolean, ""),
    # Chat
    ("use_jinja jinja", boolean, ""),
    ("chat_template", str, ""),
    ("chat_template_kwargs", _object, "default_template_kwargs"),
    ("prefill_assistant", boolean, ""),
    (
        "reasoning_format",
        choice(
            "common_reasoning_format",
            "COMMON_REASONING_FORMAT_",
            *("none", "auto", "deepseek", "deepseek_legacy"),
        ),
        "",
    ),
    ("enable_reasoning reasoning_budget", whole(low=-1), ""),
    # Embeddings and media
    ("pooling_type pooling", pooling, ""),
    ("embd_normalize embedding_normalize", whole(low=-1), ""),
    ("mmproj_use_gpu mmproj_offload", boolean, ""),
    ("no_mmproj", boolean, ""),
    ("image_min_tokens", _any, ""),
    ("image_max_tokens", _any, ""),
    # Speculation
    ("spec_type speculative_type", _speculation, "speculative.types"),
    ("spec_n_max draft_max", _count, "speculative.draft.n_max"),
    ("spec_n_min draft_min", _count, "speculative.draft.n_min"),
    ("spec_p_min draft_p_min", float, "speculative.draft.p_min"),
    ("spec_p_split", float, "speculative.draft.p_split"),
    ("draft_gpu_layers", _any, "speculative.draft.n_gpu_layers"),
    ("draft_cache_type_k spec_draft_cache_type_k", cache_type, "speculative.draft.cache_type_k"),
    ("draft_cache_type_v spec_draft_cache_type_v", cache_type, "speculative.draft.cache_type_v"),
    ("draft_threads spec_draft_threads", threads, "speculative.draft.cpuparams.n_threads"),
    (
        "draft_threads_batch spec_draft_threads_batch",
        threads,
        "speculative.draft.cpuparams_batch.n_threads",
    ),
    ("spec_ngram_size_n ngram_size_n", _count, "speculative.ngram_simple.size_n"),
    ("spec_ngram_size_m ngram_size_m", _count, "speculative.ngram_simple.size_m"),
    ("spec_ngram_min_hits ngram_min_hits", _count, "speculative.ngram_simple.min_hits"),
    ("spec_ngram_mod_n_min", _count, "speculative.ngram_mod.n_min"),
    ("spec_ngram_mod_n_max", _count, "speculative.ngram_mod.n_max"),
    ("spec_ngram_mod_n_match", _count, "speculative.ngram_mod.n_match"),
    ("spec_ngram_map_k_size_n", _count, "speculative.ngram_map_k.size_n"),
    ("spec_ngram_map_k_size_m", _count, "speculative.ngram_map_k.size_m"),
    ("spec_ngram_map_k_min_hits", _count, "speculative.ngram_map_k.min_hits"),
    ("spec_ngram_map_k4v_size_n", _count, "speculative.ngram_map_k4v.size_n"),
    ("spec_ngram_map_k4v_size_m", _count, "speculative.ngram_map_k4v.size_m"),
    ("spec_ngram_map_k4v_min_hits", _count, "speculative.ngram_map_k4v.min_hits"),
    (
        "lookup_cache_static spec_lookup_cache_static",
        str,
        "speculative.ngram_cache.lookup_cache_static",
    ),
    (
        "lookup_cache_dynamic spec_lookup_cache_dynamic",
        str,
        "speculative.ngram_cache.lookup_cache_dynamic",
    ),
    # Log: 0 nothing but crashes, 1 errors, 2 warnings, 3 information, 4 and more debugging
    ("verbosity", _any, ""),
)


def read(line: str) -> tuple[Setting, Any] | None:
    """Read one `name:value` line (a bare name means true); None when the name is unknown.

    Raises:
        InvalidRequest: the value does not fit the name.
    """
    name, colon, text = line.partition(":")
    setting = SETTINGS.get(name.strip())
    if setting is None:
        return None
    try:
        return setting, setting.parse(text if colon else "true")
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"Options[{name}]: {error}") from error
