"""Defaults for options that a model's configuration leaves open: model file, settings, hardware, LocalAI.

The order and the values are those of LocalAI's newest version: the configuration always wins; then come
the loader's settings, the model file, and last the fixed defaults. Hardware only adds values that none
of them sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from services.loader.models.config import ModelConfig, option
from services.loader.models.gguf import Header

ALL_GPU_LAYERS: Final = 99_999_999
BATCH: Final = 512
CONTEXT: Final = 4096
"""For a model whose file does not name the context it was trained for."""
CONTEXT_STEPS: Final = (8192, 6144, 4096)
"""The largest context chosen by default, and the steps it is lowered to if it does not fit."""
FIT: Final = 1.2
"""How much larger the smallest GPU must be than what the model needs."""
LARGEST_BATCH: Final = 8192
"""The cap on a batch for a whole input, as working memory grows with it (ours, not LocalAI's)."""
LARGEST_BATCH_SMALL_GPU: Final = 2048
SMALL_GPU: Final = 8 * 1024**3
SLOTS: Final = ((32 * 1024**3, 8), (8 * 1024**3, 4), (4 * 1024**3, 2))
"""Slots of llama.cpp by the bytes of the smallest GPU."""
CACHE_REUSE: Final = 256
_SINGLE_PASS: Final = frozenset({"score", "embeddings", "rerank"})
_SPECULATION: Final = ("spec_type:draft-mtp", "spec_n_max:6", "spec_p_min:0.75")
_VLLM: Final = ("enable_prefix_caching", "enable_chunked_prefill")


class Source(Enum):
    """Where a value comes from; the names are those of the contract."""

    CONFIG = "CONFIG"
    MODEL_FILE = "MODEL_FILE"
    SETTINGS = "SETTINGS"
    HARDWARE = "HARDWARE"
    DEFAULT = "DEFAULT"
    BACKEND = "BACKEND"


@dataclass(frozen=True, slots=True)
class Value:
    """A value, where it comes from, and why it is what it is."""

    value: Any
    source: Source = Source.DEFAULT
    detail: str = ""
    path: tuple[str, ...] = ()
    """With CONFIG: the field in the model's configuration."""


@dataclass(frozen=True, slots=True)
class OptionSettings:
    """The loader's settings for options that models leave open; 0 leaves the option to the model."""

    threads: int = 0
    context_size: int = 0
    f16: bool = False
    parallel: int = 0
    guessing: bool = True
    """Whether defaults are read from model files."""
    hardware: bool = True
    """Whether defaults depend on the machine's GPUs."""
    xpu: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that defaults depend on in addition to the configuration."""

    settings: OptionSettings = field(default_factory=OptionSettings)
    header: Header | None = None
    """The header of the model's GGUF file, if it was read."""
    gpus: Mapping[str, int] = field(default_factory=dict)
    """Bytes by name."""

    @property
    def smallest_gpu(self) -> int:
        """The bytes of the smallest GPU; 0 without a GPU."""
        return min(self.gpus.values(), default=0)


def is_llama(backend: str) -> bool:
    """Whether the named backend belongs to llama.cpp's family, including aliases and builds."""
    lowered = backend.lower().replace("_", "-")
    return "llama-cpp" in lowered or lowered in ("", "llama", "go-llama", "ik-llama", "turboquant")


def context_size(config: ModelConfig, facts: Facts, needs: Callable[[int], int]) -> Value:
    """Return the context size; `needs` returns the model's memory in bytes for a context in tokens."""
    wanted, header = config.context_size, facts.header
    trained = header.trained_context if header else 0
    if wanted is not None and wanted >= 0:
        return Value(wanted, Source.CONFIG, path=("context_size",))
    if wanted is not None and trained:
        why = f"context_size is {wanted}: all that the model was trained for"
        return Value(trained, Source.MODEL_FILE, why)
    if facts.settings.context_size:
        return Value(facts.settings.context_size, Source.SETTINGS, "--context-size")
    if not trained:
        return Value(CONTEXT, Source.DEFAULT, "the model file names no context")
    steps = [min(trained, step) for step in CONTEXT_STEPS]
    if not facts.smallest_gpu:
        return Value(steps[0], Source.MODEL_FILE, f"trained for {trained} tokens")
    for size in steps:
        if facts.smallest_gpu >= FIT * needs(size):
            break
    why = f"trained for {trained} tokens"
    if size < steps[0]:
        return Value(size, Source.HARDWARE, f"{why}; lowered to fit the smallest GPU")
    return Value(size, Source.MODEL_FILE, why)


def batch(config: ModelConfig, facts: Facts, context: int) -> Value:
    """Return the batch size: the context size if the model processes whole inputs at once."""
    if config.parameters.batch:
        return Value(config.parameters.batch, Source.CONFIG, path=("parameters", "batch"))
    usecases = {usecase.lower() for usecase in config.known_usecases}
    single = bool(usecases & _SINGLE_PASS) or config.embeddings or config.reranking
    encoder = facts.header is not None and facts.header.is_encoder
    if not (single or encoder) or context <= BATCH:
        return Value(BATCH)
    most = LARGEST_BATCH
    if facts.gpus and facts.smallest_gpu < SMALL_GPU:
        most = LARGEST_BATCH_SMALL_GPU
    why = "a whole input goes through at once, so the batch is as large as the context"
    if context > most:
        return Value(most, Source.HARDWARE, f"{why}, up to {most}")
    return Value(context, Source.DEFAULT if single else Source.MODEL_FILE, why)


def options(config: ModelConfig, backend: str, facts: Facts) -> Value:
    """Return the `name:value` lines of the configuration, and those added by default."""
    added: list[tuple[str, Source, str]] = []

    def add(line: str, source: Source, why: str, *names: str) -> None:
        known = (line.partition(":")[0], *names)
        if option(config.options, *known) is None:
            added.append((line, source, why))

    if is_llama(backend):
        settings, header = facts.settings, facts.header
        add(f"cache_reuse:{CACHE_REUSE}", Source.DEFAULT, "LocalAI's default", "n_cache_reuse")
        if config.prompt_cache_all is False:
            # The backend reuses prompts by default, and LoadModel has no field to turn that off.
            add("prompt_cache_all:false", Source.CONFIG, "prompt_cache_all")
        if settings.parallel:
            add(
                *(f"parallel:{settings.parallel}", Source.SETTINGS, "--llamacpp-parallel"),
                "n_parallel",
            )
        if header is not None and header.has_chat_template and not _has_templates(config):
            add("use_jinja:true", Source.MODEL_FILE, "the file has a chat template", "jinja")
        speculates = option(config.options, "spec_type", "speculative_type") is not None
        if header is not None and header.predicts_ahead and not speculates:
            for line in _SPECULATION:
                add(line, Source.MODEL_FILE, "the model predicts several tokens at once")
        if facts.gpus and settings.hardware:
            if not config.options:
                add("gpu", Source.HARDWARE, "there is one")
            slots = next((n for size, n in SLOTS if facts.smallest_gpu >= size), 0)
            if slots and not settings.parallel:
                why = "by the memory of the smallest GPU"
                add(f"parallel:{slots}", Source.HARDWARE, why, "n_parallel")
    lines = [*config.options, *(line for line, _, _ in added)]
    detail = "; ".join(f"{line}: {why}" for line, _, why in added)
    if config.options:
        return Value(lines, Source.CONFIG, f"and {detail}" if detail else "", ("options",))
    sources = {source for _, source, _ in added}
    most = next(
        (
            s
            for s in (Source.CONFIG, Source.SETTINGS, Source.MODEL_FILE, Source.HARDWARE)
            if s in sources
        ),
        Source.DEFAULT,
    )
    path = ("prompt_cache_all",) if most is Source.CONFIG else ()
    return Value(lines, most, detail, path)


def engine_args(config: ModelConfig, backend: str) -> Value:
    """Return the arguments for the backend's engine; vLLM gets those that make prompts cheaper."""
    arguments = dict(config.engine_args)
    added = []
    if backend.lower().split("-")[-1] == "vllm":
        added = [name for name in _VLLM if name not in arguments]
        arguments |= dict.fromkeys(added, True)
    detail = ", ".join(f"{name}: LocalAI's default for vLLM" for name in added)
    if config.engine_args:
        return Value(arguments, Source.CONFIG, f"and {detail}" if detail else "", ("engine_args",))
    return Value(arguments, Source.BACKEND if added else Source.DEFAULT, detail)


def _has_templates(config: ModelConfig) -> bool:
    template = config.template
    return bool(template.chat or template.chat_message or template.completion)
