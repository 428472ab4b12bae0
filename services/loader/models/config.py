"""A model's YAML configuration, as LocalAI writes it: the schema, and how its fields are checked.

Fields are those that the loader or a backend's LoadModel needs; all others (pipelines, sampling) are
for clients, are kept in the file, and do not make it invalid. The names, and which of them reach the
backend, are LocalAI's; `memory` and `endpoint` are Corral's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from services.common.go_yaml import as_written
from services.common.quantities import parse_size

_BACKEND_NAME = re.compile(r"[A-Za-z0-9._-]+")
_DEVICE = re.compile(r"ram|gpu\d+")
_PARALLEL = ("parallel", "n_parallel")
ANY_DEVICE = ""
"""In `memory`: wherever the weights are."""


def _text(value: object) -> object:
    # YAML reads `main_gpu: 0` or `flash_attention: true` as a number or a boolean; the wire has text.
    written = as_written(value)
    return value if written is None else written


def _texts(value: object) -> object:
    return [_text(item) for item in value] if isinstance(value, list) else [_text(value)]


def _memory(value: object) -> object:
    if not isinstance(value, Mapping):
        return {ANY_DEVICE: parse_size(_text(value))}
    needs = {}
    for device, size in value.items():
        if not isinstance(device, str) or not _DEVICE.fullmatch(device):
            raise ValueError(f"{device!r} is not a device; name them ram, gpu0, gpu1 and so on")
        needs[device] = parse_size(_text(size))
    return needs


Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[list[str], BeforeValidator(_texts)]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
"""Limit of the wire format: a larger number is refused by the name of its field."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, values: object) -> object:
        if isinstance(values, dict) and None in values.values():
            return {name: value for name, value in values.items() if value is not None}
        return values


class Parameters(_Section):
    """The settings that LocalAI keeps under `parameters`."""

    model: Text = ""
    seed: int | None = None
    batch: Int32 = 0
    rope_freq_base: float = 0
    rope_freq_scale: float = 0
    tokenizer: Text = ""

    @field_validator("model")
    @classmethod
    def _inside(cls, value: str) -> str:
        return inside_models_folder(value)


class Template(_Section):
    """How clients write prompts; here only whether the configuration has its own way."""

    chat: Text = ""
    chat_message: Text = ""
    completion: Text = ""
    function: Text = ""
    edit: Text = ""


class DownloadFile(_Section):
    """A file that belongs to the model, and where it came from."""

    filename: Text = ""
    sha256: Text = ""
    uri: Text = ""

    @field_validator("filename")
    @classmethod
    def _inside(cls, value: str) -> str:
        return inside_models_folder(value)


class Grpc(_Section):
    """How long the backend may take to answer: attempts x sleep, as a maximum."""

    attempts: int = Field(default=0, ge=0)
    attempts_sleep_time: int = Field(default=0, ge=0)


class Diffusers(_Section):
    """Image generation."""

    cuda: bool = False
    pipeline_type: Text = ""
    scheduler_type: Text = ""
    cfg_scale: float = 0
    img2img: bool = False
    clip_skip: Int32 = 0
    clip_model: Text = ""
    clip_subfolder: Text = ""
    control_net: Text = ""


class Tts(_Section):
    """Speech."""

    audio_path: Text = ""


class GrammarTrigger(_Section):
    """A word that switches a lazy grammar on."""

    word: Text = ""


class Grammar(_Section):
    """How function calls are constrained."""

    triggers: list[GrammarTrigger] = Field(default_factory=list)


class Function(_Section):
    """Function calls."""

    grammar: Grammar = Grammar()


class Limits(_Section):
    """How many calls at once."""

    max_concurrent: int = Field(default=0, ge=0)
    retry_after_seconds: int = Field(default=0, ge=0)


class Proxy(_Section):
    """For backends that pass requests on to another service."""

    upstream_url: Text = ""
    mode: Text = ""
    provider: Text = ""
    api_key_env: Text = ""
    api_key_file: Text = ""
    upstream_model: Text = ""
    request_timeout_seconds: Int32 = 0
    cache_prompt: bool = False


AUTO = "auto"


class Endpoint(_Section):
    """Corral's own: addresses of the model in addition to its Unix socket."""

    port: Annotated[int, Field(ge=1, le=65535)] | Literal["auto"] | None = None
    """A loopback port, or `auto` for one of the range that the service's `--endpoint-ports` names."""


class ModelConfig(_Section):
    """One model's configuration."""

    name: Text = ""
    backend: Text = ""
    alias: Text = ""
    disabled: bool = False
    pinned: bool = False
    parameters: Parameters = Parameters()
    grpc: Grpc = Grpc()
    known_usecases: Texts = Field(default_factory=list)
    concurrency_groups: Texts = Field(default_factory=list)
    limits: Limits = Limits()
    endpoint: Endpoint | None = None
    memory: Annotated[dict[str, int], BeforeValidator(_memory)] = Field(default_factory=dict)
    """Memory needs in bytes, by device (`ram`, `gpu0`) or wherever it is; wins over
    estimates."""
    download_files: list[DownloadFile] = Field(default_factory=list)
    template: Template = Template()
    options: Texts = Field(default_factory=list)
    overrides: Texts = Field(default_factory=list)
    engine_args: dict[str, Any] = Field(default_factory=dict)

    prompt_cache_all: bool | None = None
    context_size: Int32 | None = None
    threads: Int32 | None = None
    f16: bool | None = None
    mmap: bool | None = None
    mmlock: bool = False
    low_vram: bool = False
    embeddings: bool = False
    reranking: bool = False
    numa: bool = False
    gpu_layers: Int32 | None = None
    main_gpu: Text = ""
    tensor_split: Text = ""
    rms_norm_eps: float = 0
    ngqa: Int32 = 0
    no_mulmatq: bool = False
    rope_scaling: Text = ""
    yarn_ext_factor: float = 0
    yarn_attn_factor: float = 0
    yarn_beta_fast: float = 0
    yarn_beta_slow: float = 0
    type: Text = ""
    mmproj: Text = ""
    draft_model: Text = ""
    lora_adapter: Text = ""
    lora_base: Text = ""
    lora_scale: float = 0
    lora_adapters: Texts = Field(default_factory=list)
    lora_scales: list[float] = Field(default_factory=list)
    flash_attention: Text = ""
    no_kv_offloading: bool = False
    cache_type_k: Text = ""
    cache_type_v: Text = ""
    quantization: Text = ""
    load_format: Text = ""
    gpu_memory_utilization: float = 0
    trust_remote_code: bool = False
    enforce_eager: bool = False
    swap_space: Int32 = 0
    max_model_len: Int32 = 0
    tensor_parallel_size: Int32 = 0
    disable_log_stats: bool = False
    dtype: Text = ""
    limit_mm_per_prompt: dict[str, Int32] = Field(default_factory=dict)
    cuda: bool = False
    diffusers: Diffusers = Diffusers()
    tts: Tts = Tts()
    function: Function = Function()
    proxy: Proxy | None = None

    @field_validator("backend")
    @classmethod
    def _plain_backend(cls, value: str) -> str:
        if value and not _BACKEND_NAME.fullmatch(value):
            raise ValueError("may only hold letters, digits, '.', '_' and '-'")
        return value

    @field_validator("mmproj", "draft_model")
    @classmethod
    def _inside(cls, value: str) -> str:
        return inside_models_folder(value)

    @field_validator("alias")
    @classmethod
    def _alias(cls, value: str, info: Any) -> str:
        if value and value == info.data.get("name"):
            raise ValueError("the model is an alias of itself; name another model")
        if value and info.data.get("backend"):
            raise ValueError("an alias has no backend of its own; remove `backend` or `alias`")
        return value

    @field_validator("parameters")
    @classmethod
    def _no_model_of_an_alias(cls, value: Parameters, info: Any) -> Parameters:
        if value.model and info.data.get("alias"):
            raise ValueError("an alias has no model of its own; remove `model` here or `alias`")
        return value

    @property
    def model(self) -> str:
        """The model file below the models folder, or a repository id; the wire's ModelIdentity."""
        return self.parameters.model

    @property
    def concurrency(self) -> int:
        """Calls that may run at once: `limits.max_concurrent`, otherwise `parallel:N` in `options`; 0 for unknown."""
        return self.limits.max_concurrent or parallel(self.options)

    def option(self, *names: str) -> str | None:
        """Return the value of the last line `name:value` in `options` with one of the names, if any."""
        return option(self.options, *names)


def option(options: Iterable[str], *names: str) -> str | None:
    """Return the value of the last `name:value` with one of the names; a bare name's is empty."""
    found = None
    for line in options:
        name, _, value = line.partition(":")
        if name.strip() in names:
            found = value.strip()
    return found


def parallel(options: Iterable[str]) -> int:
    """Return the calls that llama.cpp works on at once by its options (`parallel:N`); 0 if they set none."""
    value = option(options, *_PARALLEL) or ""
    return int(value) if value.isdecimal() else 0


def inside_models_folder(value: str) -> str:
    """Return the path; raises ValueError if it would lead out of the models folder."""
    if value.startswith("/") or ".." in PurePosixPath(value.replace("\\", "/")).parts:
        raise ValueError(f"{value!r} leads out of the models folder; give a path below it")
    return value
