"""Loading a model into the backend: what it accepts, what it refuses, and with which messages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from corral.backend import backend_pb2 as pb
from tests.tools.llama_backend import CALL_TIMEOUT, Backend, backend
from tests.tools.processes import alive
from tests.tools.tiny_gguf import write_tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("count", "truncated", "corrupt"):
        write_tiny(kind, folder / f"{kind}.gguf")
    return folder


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Backend]:
    with backend(f"unix:{tmp_path}/b.sock", tmp_path) as running_backend:
        yield running_backend


def code_of(run: Backend, request: pb.ModelOptions) -> tuple[grpc.StatusCode, str]:
    with run.stub() as stub, pytest.raises(grpc.RpcError) as caught:
        stub.LoadModel(request, timeout=CALL_TIMEOUT)
    return caught.value.code(), caught.value.details() or ""


def test_before_a_model(started: Backend) -> None:
    with started.stub() as stub:
        assert stub.Health(pb.HealthMessage()).message == b"OK"
        status = stub.Status(pb.HealthMessage())
        assert status.state == pb.StatusResponse.UNINITIALIZED
        assert status.memory.total > 1_000_000
        assert stub.Free(pb.HealthMessage()).success
        for call in (
            lambda: stub.Predict(pb.PredictOptions(Prompt="x")),
            lambda: list(stub.PredictStream(pb.PredictOptions(Prompt="x"))),
            lambda: stub.Embedding(pb.PredictOptions(Prompt="x")),
            lambda: stub.TokenizeString(pb.PredictOptions(Prompt="x")),
            lambda: stub.GetMetrics(pb.MetricsRequest()),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "model not loaded" in (caught.value.details() or "")


def test_health_service(started: Backend) -> None:
    with grpc.insecure_channel(started.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "backend.Backend"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_files_that_can_not_be_loaded(started: Backend, models: Path) -> None:
    (models / "empty.gguf").touch()
    (models / "text.gguf").write_text("not a model at all, but long enough to be looked at")
    for name, code, words in (
        ("missing", grpc.StatusCode.NOT_FOUND, "does not exist"),
        ("truncated", grpc.StatusCode.FAILED_PRECONDITION, "truncated"),
        ("corrupt", grpc.StatusCode.FAILED_PRECONDITION, "corrupt"),
        ("empty", grpc.StatusCode.FAILED_PRECONDITION, "empty"),
        ("text", grpc.StatusCode.FAILED_PRECONDITION, "not a GGUF file"),
    ):
        found = code_of(started, pb.ModelOptions(ModelFile=str(models / f"{name}.gguf")))
        assert found[0] is code, found
        assert words in found[1]
        assert name in found[1]
    assert code_of(started, pb.ModelOptions())[0] is grpc.StatusCode.INVALID_ARGUMENT
    # None of them affects the next load.
    assert started.load(models / "count.gguf").success


def test_model_is_found_in_its_folder(started: Backend, models: Path) -> None:
    with started.stub() as stub:
        request = pb.ModelOptions(Model="count.gguf", ModelPath=str(models))
        assert stub.LoadModel(request).success


def test_the_engines_reason_is_told(started: Backend, models: Path) -> None:
    data = (models / "count.gguf").read_bytes()
    # The length before the name stays the same.
    changed = data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0llamb", 1)
    (models / "unknown.gguf").write_bytes(changed)
    with started.stub() as stub:
        result = stub.LoadModel(pb.ModelOptions(ModelFile=str(models / "unknown.gguf")))
        assert not result.success
        assert "unknown model architecture: 'llamb'" in result.message
        assert stub.Status(pb.HealthMessage()).state == pb.StatusResponse.ERROR
    assert started.load(models / "count.gguf").success


def test_what_is_ignored_is_reported(started: Backend, models: Path) -> None:
    result = started.load(
        models / "count.gguf",
        PipelineType="x",
        Quantization="awq",
        Options=["foo:1", "parallel:2", "use_jinja"],
        NGPULayers=99999999,
        F16Memory=True,
        MMap=True,
        Threads=1,
        Seed=7,
    )
    assert result.success
    assert result.message == (
        "Loading succeeded; ignored: PipelineType (not used by llama.cpp), "
        "Quantization (not used by llama.cpp), Options[foo] (unknown)"
    )
    for word in ("PipelineType", "Quantization", "Options[foo]"):
        assert word in started.errors()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"Options": ["parallel:abc"]}, "Options[parallel]"),
        ({"Options": ["warmup:perhaps"]}, "Options[warmup]"),
        ({"CacheTypeKey": "q99"}, "CacheTypeKey"),
        ({"FlashAttention": "sometimes"}, "FlashAttention"),
        ({"RopeScaling": "x"}, "RopeScaling"),
        ({"MainGPU": "x"}, "MainGPU"),
        ({"TensorSplit": "a,b"}, "TensorSplit"),
        ({"ContextSize": -1}, "ContextSize"),
        ({"NBatch": -1}, "NBatch"),
        ({"LoraScales": [1.0]}, "LoraScales"),
    ],
)
def test_bad_values_are_refused(
    started: Backend, models: Path, options: dict[str, object], word: str
) -> None:
    request = pb.ModelOptions(ModelFile=str(models / "count.gguf"), **options)  # type: ignore[arg-type]
    code, details = code_of(started, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert word in details


@pytest.mark.parametrize("field", ["LoraAdapter", "DraftModel", "MMProj"])
def test_companions_that_are_missing(started: Backend, models: Path, field: str) -> None:
    options: dict[str, Any] = {field: "no.gguf"}
    request = pb.ModelOptions(ModelFile=str(models / "count.gguf"), **options)
    code, details = code_of(started, request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert field in details


def test_many_options_load(started: Backend, models: Path) -> None:
    """Every kind of value reaches the engine's own parameter object."""
    result = started.load(
        models / "count.gguf",
        ContextSize=1024,
        NBatch=128,
        CacheTypeKey="q8_0",
        CacheTypeValue="f16",
        FlashAttention="off",
        MLock=False,
        MMap=True,
        TensorSplit="1,1",
        MainGPU="0",
        RopeScaling="linear",
        RopeFreqBase=10000.0,
        RopeFreqScale=0.5,
        NoKVOffload=True,
        Seed=3,
        GrammarTriggers=[pb.GrammarTrigger(word="x")],
        Options=[
            *("n_parallel:2", "cache_reuse:0", "cache_ram:0", "context_shift:true", "sps:0.2"),
            *("kv_unified:true", "warmup:true", "reasoning_format:none", "split_mode:layer"),
            *("n_ubatch:64", "threads_batch:1", "poll:0", "max_queue:3", "swa_full:true"),
            *("verbosity:0", 'chat_template_kwargs:{"a": 1}', "spec_type:none"),
        ],
    )
    assert result.message == "Loading succeeded"
    with started.stub() as stub:
        reply = stub.Predict(pb.PredictOptions(Prompt="one two three", Tokens=3))
    assert reply.message == b" four five six"


def test_loading_again(started: Backend, models: Path) -> None:
    assert started.load(models / "count.gguf", ContextSize=512).success
    engine = started.engine
    assert started.load(models / "count.gguf", ContextSize=512).success
    assert started.engine == engine
    request = pb.ModelOptions(ModelFile=str(models / "count.gguf"), ContextSize=1024)
    code, details = code_of(started, request)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "Free" in details


def test_free_and_load_again(started: Backend, models: Path) -> None:
    for _ in range(3):
        assert started.load(models / "count.gguf").success
        engine = started.engine
        with started.stub() as stub:
            assert stub.Predict(pb.PredictOptions(Prompt="one", Tokens=1)).message == b" two"
            assert stub.Free(pb.HealthMessage()).success
            assert not alive(engine)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Predict(pb.PredictOptions(Prompt="one"))
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert stub.Free(pb.HealthMessage()).success
            state = stub.Status(pb.HealthMessage()).state
            assert state == pb.StatusResponse.UNINITIALIZED
