"""Where each value of LoadModel's request comes from, and which source wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.backend import backend_pb2
from services.loader.gateway.load_request import message
from services.loader.models.config import ModelConfig
from services.loader.models.gguf import Header
from services.loader.options.defaults import Facts, OptionSettings, Source, Value
from services.loader.options.effective import effective_values
from services.loader.options.effective import sent as bare

GIB = 1024**3
MODELS = Path("/models")


def header(**own: Any) -> Header:
    metadata = {
        "general.architecture": "llama",
        "llama.context_length": 131072,
        "llama.block_count": 32,
        "llama.embedding_length": 4096,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        **{f"llama.{key}": value for key, value in own.items()},
    }
    return Header(5 * GIB, metadata)


def values(
    name: str = "llama-cpp",
    /,
    *,
    settings: OptionSettings | None = None,
    file: Header | None = None,
    gpus: dict[str, int] | None = None,
    **config: Any,
) -> dict[str, Value]:
    parameters = {"model": "m.gguf", **config.pop("parameters", {})}
    parsed = ModelConfig.model_validate({"name": "m", "parameters": parameters, **config})
    facts = Facts(settings or OptionSettings(), file, gpus or {})
    return effective_values(parsed, "r1", name, MODELS, facts)


def context(**given: Any) -> tuple[Any, Source]:
    value = values(**given)["ContextSize"]
    return value.value, value.source


def test_every_field_of_the_message_is_decided() -> None:
    fields = {field.name for field in backend_pb2.ModelOptions.DESCRIPTOR.fields}
    decided = values(proxy={"mode": "passthrough"}).keys()
    assert fields - decided == {"VocabOnly"}  # LocalAI never sets it either
    assert decided <= fields


def test_the_context_by_its_sources() -> None:
    set_to = OptionSettings(context_size=2222)
    assert context(context_size=99, settings=set_to, file=header()) == (99, Source.CONFIG)
    assert context(settings=set_to, file=header()) == (2222, Source.SETTINGS)
    assert context(file=header()) == (8192, Source.MODEL_FILE)
    assert context(file=header(context_length=2048)) == (2048, Source.MODEL_FILE)
    assert context() == (4096, Source.DEFAULT)
    assert context(context_size=-1, settings=set_to, file=header()) == (131072, Source.MODEL_FILE)
    assert context(context_size=-1) == (4096, Source.DEFAULT)


@pytest.mark.parametrize(
    ("size", "tokens", "source"),
    [(24, 8192, Source.MODEL_FILE), (7.45, 6144, Source.HARDWARE), (6, 4096, Source.HARDWARE)],
)
def test_the_context_is_lowered_to_fit_the_smallest_gpu(
    size: float, tokens: int, source: Source
) -> None:
    gpus = {"gpu0": 48 * GIB, "gpu1": int(size * GIB)}
    assert context(file=header(), gpus=gpus) == (tokens, source)


@pytest.mark.parametrize(
    ("gpus", "slots"),
    [((32, 80), 8), ((8,), 4), ((4, 80), 2), ((3,), None), ((), None)],
)
def test_slots_by_the_smallest_gpu(gpus: tuple[int, ...], slots: int | None) -> None:
    sizes = {f"gpu{n}": size * GIB for n, size in enumerate(gpus)}
    lines = values(gpus=sizes)["Options"].value
    assert [line for line in lines if line.startswith("parallel")] == (
        [f"parallel:{slots}"] if slots else []
    )
    assert ("gpu" in lines) == bool(gpus)
    said = values(gpus=sizes, options=["n_parallel:3"])["Options"].value
    assert said == ["n_parallel:3", "cache_reuse:256"]
    off = values(gpus=sizes, settings=OptionSettings(hardware=False))["Options"].value
    assert off == ["cache_reuse:256"]


def test_what_the_file_tells_becomes_options() -> None:
    told = header(nextn_predict_layers=1)
    told = Header(told.size, {**told.metadata, "tokenizer.chat_template": "{{ x }}"})
    found = values(file=told)["Options"]
    assert found.source is Source.MODEL_FILE and "use_jinja:true" in found.value
    assert {"spec_type:draft-mtp", "spec_n_max:6", "spec_p_min:0.75"} <= set(found.value)
    own = values(file=told, options=["use_jinja:false", "spec_type:none"])["Options"]
    assert own.value == ["use_jinja:false", "spec_type:none", "cache_reuse:256"]
    assert own.source is Source.CONFIG and own.path == ("options",)
    templates = values(file=told, template={"chat": "{{.Input}}"})["Options"].value
    assert "use_jinja:true" not in templates


def test_reuse_of_prompts_is_turned_off_only_by_the_configuration() -> None:
    """LocalAI's prompt_cache_all is true by default; LoadModel has no field for it."""
    line = "prompt_cache_all:false"
    assert line not in values()["Options"].value
    assert line not in values(prompt_cache_all=True)["Options"].value
    off = values(prompt_cache_all=False)["Options"]
    assert line in off.value and off.source is Source.CONFIG
    own = values(prompt_cache_all=False, options=["prompt_cache_all:true"])["Options"].value
    assert line not in own


def test_other_backends_get_no_options_of_llama_cpp() -> None:
    gpus = {"gpu0": 40 * GIB}
    assert values("whisper", gpus=gpus)["Options"] == Value([], Source.DEFAULT, "")
    arguments = values("cuda12-vllm", engine_args={"enable_prefix_caching": False})["EngineArgs"]
    assert arguments.value == '{"enable_prefix_caching": false, "enable_chunked_prefill": true}'


@pytest.mark.parametrize("how", [{"embeddings": True}, {"known_usecases": ["Rerank"]}])
def test_a_whole_input_goes_through_at_once(how: dict[str, Any]) -> None:
    def batch(**given: Any) -> Any:
        return values(**how, **given)["NBatch"].value

    assert batch(context_size=2000) == 2000
    assert batch(context_size=100) == 512
    assert batch(context_size=100_000) == 8192
    assert batch(context_size=100_000, gpus={"gpu0": 6 * GIB}) == 2048
    assert batch(context_size=2000, parameters={"batch": 64}) == 64
    assert values(context_size=2000)["NBatch"].value == 512


@pytest.mark.parametrize(
    ("field", "path", "own", "setting"),
    [
        ("Threads", "threads", 3, OptionSettings(threads=7)),
        ("F16Memory", "f16", False, OptionSettings(f16=True)),
        ("MMap", "mmap", True, OptionSettings(xpu=True)),
    ],
)
def test_the_configuration_wins_over_the_settings(
    field: str, path: str, own: Any, setting: OptionSettings
) -> None:
    said = values(settings=setting, **{path: own})[field]
    assert (said.value, said.source, said.path) == (own, Source.CONFIG, (path,))
    assert values(settings=setting)[field].source is Source.SETTINGS
    assert values()[field].source is Source.DEFAULT


def test_a_backend_that_cannot_map_files_is_not_asked_to() -> None:
    assert values("intel-sycl-f16-llama-cpp", mmap=True)["MMap"].source is Source.BACKEND
    assert values("x", backend="sentencetransformers")["Type"].value == "SentenceTransformer"
    assert values("x", backend="sentencetransformers", type="Own")["Type"].value == "Own"


def test_a_random_seed_is_the_same_until_something_changes() -> None:
    seed = values()["Seed"].value
    assert seed == values(parameters={"seed": -1})["Seed"].value and 0 <= seed < 2**31
    assert values(parameters={"seed": 7})["Seed"].value == 7
    config = ModelConfig(name="m")
    assert effective_values(config, "r2", "x", MODELS, Facts())["Seed"].value != seed


_CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "context_size": st.none() | st.integers(-1, 2**31 - 1),
        "threads": st.none() | st.integers(-1, 64),
        "f16": st.none() | st.booleans(),
        "mmap": st.none() | st.booleans(),
        "gpu_layers": st.none() | st.integers(-1, 100),
        "embeddings": st.booleans(),
        "flash_attention": st.sampled_from(["", "on", "auto"]),
        "options": st.lists(st.sampled_from(["gpu", "parallel:3", "jinja", "x:y"]), max_size=3),
        "known_usecases": st.lists(st.sampled_from(["chat", "embeddings", "score"]), max_size=2),
    },
)


@given(
    _CONFIGS,
    st.sampled_from(["llama-cpp", "vllm", "intel-x"]),
    st.builds(OptionSettings, st.integers(0, 9), st.integers(0, 9999), st.booleans()),
    st.none() | st.builds(header, context_length=st.integers(0, 2**31 - 1)),
    st.dictionaries(st.sampled_from(["gpu0", "gpu1"]), st.integers(0, 2**40)),
)
def test_explicit_always_wins(
    config: dict[str, Any],
    backend: str,
    settings: OptionSettings,
    file: Header | None,
    gpus: dict[str, int],
) -> None:
    got = values(backend, settings=settings, file=file, gpus=gpus, **config)
    sent = message(bare(got))  # the wire has room for whatever comes out
    for field, name in (("F16Memory", "f16"), ("NGPULayers", "gpu_layers")):
        if config.get(name) is not None:
            assert getattr(sent, field) == config[name] and got[field].source is Source.CONFIG
    if (wanted := config.get("context_size")) is not None and wanted >= 0:
        assert sent.ContextSize == wanted
    assert list(sent.Options)[: len(config.get("options", []))] == config.get("options", [])
    names = [line.partition(":")[0] for line in sent.Options if line != "gpu"]
    own = [line.partition(":")[0] for line in config.get("options", [])]
    assert len(set(names) - set(own)) == len([name for name in names if name not in own])
