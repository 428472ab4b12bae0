"""ModelOptions and their `Options`: which become parameters, are reported, or are refused."""

from pathlib import Path
from typing import Any

import pytest
import xllamacpp

from backends.llama_cpp import gguf, options, settings
from backends.llama_cpp.errors import InvalidRequest, Missing
from backends.llama_cpp.options import Plan
from backends.llama_cpp.settings import Enum
from backends.llama_cpp.worker import _parameters
from corral.backend import backend_pb2 as pb
from tests.tools.tiny_gguf import write_tiny


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, gguf.Header]:
    folder = tmp_path_factory.mktemp("m")
    kinds = ("count", "embed", "rerank")
    return {kind: gguf.read(write_tiny(kind, folder / f"{kind}.gguf")) for kind in kinds}


@pytest.fixture
def header(headers: dict[str, gguf.Header]) -> gguf.Header:
    return headers["count"]


def plan(header: gguf.Header, env: dict[str, str] | None = None, **fields: Any) -> Plan:
    return options.plan(pb.ModelOptions(**fields), header, env or {})


def test_defaults(header: gguf.Header) -> None:
    made = plan(header)
    assert made.parameters == {
        "model.path": str(header.path),
        "n_ctx": 2048,
        "n_parallel": 1,
        "cpuparams.n_threads": 1,
        "cpuparams_batch.n_threads": 1,
        "warmup": False,
        "fit_params": False,
        "cache_ram_mib": 0,
        "verbosity": 1,
        "load_mode": Enum("llama_load_mode", "LLAMA_LOAD_MODE_NONE"),
        "n_gpu_layers": 0,
        "n_ubatch": 512,
    }
    assert made.max_queue == options.DEFAULT_MAX_QUEUE
    assert made.ignored == ()


@pytest.mark.parametrize(
    ("fields", "path", "value"),
    [
        ({"ContextSize": 777}, "n_ctx", 777),
        ({"Options": ["parallel:4"]}, "n_ctx", 4 * 2048),
        ({"ContextSize": 4096, "Options": ["parallel:4"]}, "n_ctx", 4096),
        ({"Threads": 3}, "cpuparams.n_threads", 3),
        ({"Threads": 3}, "cpuparams_batch.n_threads", 3),
        ({"NBatch": 64}, "n_ubatch", 64),
        ({"NBatch": 64, "Options": ["n_ubatch:32"]}, "n_ubatch", 32),
        ({"Seed": 9}, "sampling.seed", 9),
        ({"NGPULayers": 99}, "n_gpu_layers", 99),
        ({"MainGPU": "1"}, "main_gpu", 1),
        ({"MMap": True}, "load_mode", Enum("llama_load_mode", "LLAMA_LOAD_MODE_MMAP")),
        (
            {"MMap": True, "MLock": True},
            "load_mode",
            Enum("llama_load_mode", "LLAMA_LOAD_MODE_MMAP_MLOCK"),
        ),
        (
            {"MMap": True, "Options": ["direct_io"]},
            "load_mode",
            Enum("llama_load_mode", "LLAMA_LOAD_MODE_DIRECT_IO"),
        ),
        ({"CacheTypeKey": "q8_0"}, "cache_type_k", Enum("ggml_type", "GGML_TYPE_Q8_0")),
        ({"CacheTypeValue": "F16"}, "cache_type_v", Enum("ggml_type", "GGML_TYPE_F16")),
        (
            {"FlashAttention": "on"},
            "flash_attn_type",
            Enum("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_ENABLED"),
        ),
        (
            {"FlashAttention": "false"},
            "flash_attn_type",
            Enum("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_DISABLED"),
        ),
        ({"YarnBetaSlow": 0.5}, "yarn_beta_slow", 0.5),
        ({"NUMA": True}, "numa", Enum("ggml_numa_strategy", "GGML_NUMA_STRATEGY_DISTRIBUTE")),
        ({"Embeddings": True}, "embedding", True),
        ({"Reranking": True}, "pooling_type", settings.pooling("rank")),
        ({"Options": ["cache_ram:512"]}, "cache_ram_mib", 512),
        ({"Options": ["context_shift"]}, "ctx_shift", True),
        ({"Options": ["use_jinja:false"]}, "use_jinja", False),
        ({"Options": ["kv_unified:yes"]}, "kv_unified", True),
        ({"Options": ["sps:0.25"]}, "slot_prompt_similarity", 0.25),
        ({"Options": ["override_tensor:a:b=CPU"]}, "tensor_buft_overrides", "a:b=CPU"),
        (
            {"Options": ["spec_type:draft,ngram-mod"]},
            "speculative.types",
            [
                Enum("common_speculative_type", "COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"),
                Enum("common_speculative_type", "COMMON_SPECULATIVE_TYPE_NGRAM_MOD"),
            ],
        ),
        (
            {"Options": ["reasoning_format:deepseek-legacy"]},
            "reasoning_format",
            Enum("common_reasoning_format", "COMMON_REASONING_FORMAT_DEEPSEEK_LEGACY"),
        ),
    ],
)
def test_mapping(header: gguf.Header, fields: dict[str, Any], path: str, value: Any) -> None:
    assert plan(header, **fields).parameters[path] == value


def test_encoders_embed_by_themselves(headers: dict[str, gguf.Header]) -> None:
    made = plan(headers["embed"], ContextSize=100_000, Options=["parallel:2"])
    assert made.parameters["embedding"] is True
    assert "pooling_type" not in made.parameters  # the file specifies it
    # At most the model's own number of positions for each slot; a whole input fits in one batch.
    assert made.parameters["n_ctx"] == made.parameters["n_ubatch"] == 512
    reranker = plan(headers["rerank"])
    assert reranker.parameters["pooling_type"] == settings.pooling("rank")


def test_language_models_pool_when_they_embed(header: gguf.Header) -> None:
    assert plan(header, Embeddings=True).parameters["pooling_type"] == settings.pooling("mean")
    chosen = plan(header, Embeddings=True, Options=["pooling:last"])
    assert chosen.parameters["pooling_type"] == settings.pooling("last")


def test_parallel_from_the_environment(header: gguf.Header) -> None:
    env = {"LLAMACPP_PARALLEL": "3"}
    assert plan(header, env).parallel == 3
    assert plan(header, env, Options=["parallel:2"]).parallel == 2
    assert plan(header, {"LLAMACPP_PARALLEL": "x"}).parallel == 1


def test_what_is_ignored_is_listed(header: gguf.Header) -> None:
    made = plan(
        header,
        Tokenizer="x",
        LowVRAM=True,
        Overrides=["a=int:1"],
        Proxy=pb.ProxyOptions(mode="x"),
        Type="LlamaForCausalLM",
        Options=["foo:1", "grpc_servers:x:1", "-ngl:3"],
    )
    text = " ".join(made.ignored)
    words = ("Tokenizer", "NoKVOffload", "Overrides", "Proxy", "Type", "foo", "grpc_servers", "ngl")
    for word in words:
        assert word in text
    assert len(made.ignored) == 8


def test_every_field_is_either_used_or_listed(header: gguf.Header) -> None:
    """A field that the contract gains later must not be dropped silently."""
    for field in pb.ModelOptions.DESCRIPTOR.fields:
        if field.message_type is None and not field.is_repeated:
            value: Any = {"string": "1", "bool": True}.get(_kind(field), 1)
            message = pb.ModelOptions(**{field.name: value})
            ignored = options.ignored_fields(message)
            assert (field.name in options._HANDLED) != bool(ignored), field.name


def _kind(field: Any) -> str:
    if field.type == field.TYPE_STRING:
        return "string"
    return "bool" if field.type == field.TYPE_BOOL else "number"


@pytest.mark.parametrize(
    "line",
    [
        *("parallel:abc", "parallel:0", "parallel:-1", "parallel", "warmup:maybe", "sps:x"),
        *("pooling:max", "split_mode:diagonal", "chat_template_kwargs:[1]", "spec_type:guess"),
        *("chat_template_kwargs:{", "cache_ram:-2", "poll:101", "draft_cache_type_k:q99"),
    ],
)
def test_bad_lines(header: gguf.Header, line: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan(header, Options=[line])
    assert f"Options[{line.partition(':')[0]}]" in str(caught.value)


def test_companions(header: gguf.Header, tmp_path: Path) -> None:
    beside = header.path.with_name("adapter.gguf")
    beside.touch()
    (tmp_path / "draft.gguf").touch()
    made = plan(
        header,
        LoraAdapters=["adapter.gguf"],
        LoraScales=[0.5],
        LoraAdapter="adapter.gguf",
        DraftModel=str(tmp_path / "draft.gguf"),
    )
    assert made.adapters == ((str(beside), 0.5), (str(beside), 1.0))
    assert made.parameters["speculative.draft.mparams.path"] == str(tmp_path / "draft.gguf")
    with pytest.raises(Missing, match="LoraAdapter"):
        plan(header, LoraAdapters=["other.gguf"])


def test_model_paths() -> None:
    path = options.model_path
    assert path(pb.ModelOptions(ModelFile="/a/b", Model="c")) == Path("/a/b")
    assert path(pb.ModelOptions(ModelPath="/a", Model="c")) == Path("/a/c")
    assert path(pb.ModelOptions(Model="c")) == Path("c")
    with pytest.raises(InvalidRequest):
        path(pb.ModelOptions())


SAMPLES = {
    int: "1",
    float: "0.5",
    bool: "true",
}
WORDS = {
    "split_mode": "row",
    "cache_type_k": "q8_0",
    "cache_type_v": "q8_0",
    "reasoning_format": "auto",
    "pooling_type": "mean",
    "speculative.types": "draft_simple",
    "speculative.draft.cache_type_k": "f16",
    "speculative.draft.cache_type_v": "f16",
    "default_template_kwargs": '{"a": true}',
    "tensor_buft_overrides": "",
    "chat_template": "x",
}


@pytest.mark.parametrize("name", sorted(settings.SETTINGS))
def test_every_setting_exists_in_the_engine(header: gguf.Header, name: str) -> None:
    """The table's paths and kinds match the installed engine."""
    path = settings.SETTINGS[name].path
    if path in ("max_queue", "direct_io", "prompt_cache_all", "cache_prompt"):
        pytest.skip("not a parameter of the engine")
    text = WORDS.get(path, "true" if settings.SETTINGS[name].parse is settings.boolean else "1")
    if name == "cpu_moe":
        text = "false"
    value = settings.SETTINGS[name].parse(text)

    def plain(item: Any) -> Any:
        if isinstance(item, list):
            return [plain(inner) for inner in item]
        return {"enum": [item.type, item.name]} if isinstance(item, Enum) else item

    order = {
        "parameters": {path: plain(value)},
        "adapters": [],
        "socket": "/x",
        "key": "k",
        "threads": 1,
    }
    found = _parameters(xllamacpp, order)
    for step in path.split("."):
        found = getattr(found, step)
    if not isinstance(value, Enum | list | dict | str):
        assert found == pytest.approx(value)
