"""A model's YAML file, as LocalAI writes it: read, checked, never changed.

Fields are those that the loader or a backend's LoadModel needs; all others (templates, pipelines) are
for clients, are kept in the file, and do not make it invalid. The names, and which of them reach the
backend, are LocalAI's (reference: localai-loader, sections 5.2 to 5.5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from services.common.errors import FieldViolation, ModelConfigError
from services.common.go_yaml import as_written, first_document

_BACKEND_NAME = re.compile(r"[A-Za-z0-9._-]+")
_MAXIMUM_BYTES = 4 * 1024 * 1024
"""No real model file comes near; a larger one is not a configuration."""


def _text(value: object) -> object:
    # YAML reads `main_gpu: 0` or `flash_attention: true` as a number or a boolean; the wire has text.
    written = as_written(value)
    return value if written is None else written


def _texts(value: object) -> object:
    if value is None:
        return []
    return [_text(item) for item in value] if isinstance(value, list) else [_text(value)]


Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[list[str], BeforeValidator(_texts)]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
"""What the wire has room for: a larger number is refused by the name of its field."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _null_is_unset(cls, value: object, info: Any) -> object:
        if value is not None:
            return value
        field = cls.model_fields[info.field_name]
        return field.get_default(call_default_factory=True)


class Parameters(_Section):
    """What LocalAI keeps under `parameters`."""

    model: Text = ""
    seed: int | None = None
    batch: Int32 = 0
    rope_freq_base: float = 0
    rope_freq_scale: float = 0
    tokenizer: Text = ""


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

    grammar: Grammar = Field(default_factory=Grammar)


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


class ModelConfig(_Section):
    """One model's configuration."""

    name: Text = ""
    backend: Text = ""
    alias: Text = ""
    disabled: bool = False
    pinned: bool = False
    parameters: Parameters = Field(default_factory=Parameters)
    grpc: Grpc = Field(default_factory=Grpc)
    known_usecases: Texts = Field(default_factory=list)
    concurrency_groups: Texts = Field(default_factory=list)
    limits: Limits = Field(default_factory=Limits)
    options: Texts = Field(default_factory=list)
    overrides: Texts = Field(default_factory=list)
    engine_args: dict[str, Any] = Field(default_factory=dict)

    context_size: Int32 | None = None
    threads: Int32 | None = None
    f16: bool = False
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
    diffusers: Diffusers = Field(default_factory=Diffusers)
    tts: Tts = Field(default_factory=Tts)
    function: Function = Field(default_factory=Function)
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

    @field_validator("parameters")
    @classmethod
    def _model_inside(cls, value: Parameters) -> Parameters:
        inside_models_folder(value.model)
        return value

    @property
    def concurrency(self) -> int:
        """How many calls the model takes at once: `limits.max_concurrent`, else `parallel:N`; 0 for no limit."""
        if self.limits.max_concurrent:
            return self.limits.max_concurrent
        for option in self.options:
            name, _, number = option.partition(":")
            if name.strip() == "parallel" and number.strip().isdecimal():
                return int(number)
        return 0

    @property
    def model(self) -> str:
        """The model file below the models folder, or a repository id; the wire's ModelIdentity."""
        return self.parameters.model


def inside_models_folder(value: str) -> str:
    """Return the path; raises ValueError if it would lead out of the models folder."""
    if value.startswith("/") or ".." in PurePosixPath(value.replace("\\", "/")).parts:
        raise ValueError(f"{value!r} leads out of the models folder; give a path below it")
    return value


def parse_config(data: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Return the configuration, or raise ModelConfigError naming each bad field of `source`."""
    try:
        return ModelConfig.model_validate(data)
    except ValidationError as error:
        violations = [
            FieldViolation(
                ".".join(str(part) for part in problem["loc"]) or source,
                problem["msg"].removeprefix("Value error, "),
            )
            for problem in error.errors()
        ]
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        raise ModelConfigError(f"{source}: {text}", violations=violations) from error


def read_documents(path: Path) -> list[Mapping[str, Any]]:
    """Return the model configurations of a YAML file, which holds one or a list of them.

    Raises ModelConfigError that names the file and, where YAML tells, the line.
    """
    try:
        if path.stat().st_size > _MAXIMUM_BYTES:
            raise ModelConfigError(f"{path.name}: is larger than {_MAXIMUM_BYTES} bytes")
        content = first_document(path.read_bytes())
    except OSError as error:
        raise ModelConfigError(f"{path.name}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ModelConfigError(f"{path.name}: is not YAML: {_one_line(error)}") from error
    documents = content if isinstance(content, list) else [content]
    if not all(isinstance(document, dict) for document in documents):
        raise ModelConfigError(f"{path.name}: must hold a map of settings, or a list of such maps")
    return documents


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
