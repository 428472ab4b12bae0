"""The backend as a process: how it starts, what it refuses, how it ends, what it leaves."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc
from tests.tools.llama_backend import (
    CALL_TIMEOUT,
    RUN,
    STOP_TIMEOUT,
    Backend,
    backend,
    backend_environment,
)
from tests.tools.processes import alive, children
from tests.tools.service import ROOT
from tests.tools.tiny_gguf import write_tiny
from tests.tools.waiting import eventually_sync

# The contract's limits for leaving.
TERMINATED_WITHIN = 2.0
ORPHANED_WITHIN = 2.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("count", "truncated", "corrupt", "duplicate_vocab"):
        write_tiny(kind, folder / f"{kind}.gguf")
    write_tiny("count", folder / "slow.gguf", layers=24, embd=512)
    return folder


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Backend]:
    with backend(f"unix:{tmp_path}/b.sock", tmp_path) as running_backend:
        yield running_backend


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder with a name so short that sockets fit into it."""
    folder = tempfile.mkdtemp(prefix="lc")
    yield Path(folder)
    shutil.rmtree(folder)


def scratch_folders(pid: int, base: Path) -> list[Path]:
    return list(base.glob(f"corral-llama-cpp-{pid}-*"))


# --- Starting ---------------------------------------------------------------------------------


def test_unix_address_is_announced_and_private(started: Backend, tmp_path: Path) -> None:
    assert started.line == f"ready llama-cpp unix:{tmp_path}/b.sock\n"
    assert (tmp_path / "b.sock").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("form", ["unix://{}", "unix:{}"])
def test_unix_address_forms(tmp_path: Path, form: str) -> None:
    path = tmp_path / "b.sock"
    with backend(form.format(path), tmp_path) as run:
        assert run.address == f"unix:{path}"


def test_port_0_announces_the_port(tmp_path: Path) -> None:
    with backend("127.0.0.1:0", tmp_path) as run:
        host, port = run.address.split(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        with run.stub() as stub:
            assert stub.Health(pb.HealthMessage()).message == b"OK"


def test_nothing_but_the_ready_line_on_stdout(tmp_path: Path, models: Path) -> None:
    with backend("127.0.0.1:0", tmp_path) as run:
        assert run.load(models / "count.gguf", Options=["verbosity:5"]).success
        run.process.terminate()
        rest, _ = run.process.communicate(timeout=STOP_TIMEOUT)
    assert rest == ""
    assert "loaded" in run.errors()


def test_version() -> None:
    result = subprocess.run(
        [RUN, "--version"], capture_output=True, text=True, env=backend_environment(), check=True
    )
    assert result.stdout == "llama-cpp 0.1.0\n"


def test_module_form(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "backends.llama_cpp", "--addr", f"unix:{tmp_path}/m.sock"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=backend_environment(),
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready llama-cpp unix:{tmp_path}/m.sock\n"
        process.terminate()
        assert process.wait(STOP_TIMEOUT) == 0


def test_the_folder_may_be_copied_and_renamed(tmp_path: Path, models: Path) -> None:
    """Also into a working directory whose modules look like the library's."""
    copy = shutil.copytree(RUN.parent, tmp_path / "cpu-llama-cpp.v2")
    (copy / "queue.py").write_text("raise RuntimeError('shadowed')\n")
    address = f"unix:{tmp_path}/c.sock"
    run = Backend.start(address, tmp_path, run=copy / "run.sh")
    try:
        assert run.load(models / "count.gguf").success
    finally:
        assert run.stop() == 0


def test_missing_packages_are_named(tmp_path: Path) -> None:
    # An interpreter without the environment's packages.
    base = Path(sys.base_prefix) / "bin" / "python3"
    result = subprocess.run(
        [RUN, "--addr", f"unix:{tmp_path}/b.sock"],
        check=False,
        capture_output=True,
        text=True,
        env=backend_environment(CORRAL_PYTHON=str(base), PYTHONNOUSERSITE="1"),
    )
    if result.returncode != 3 and "ready" in result.stdout:
        pytest.skip("the base interpreter has the packages")
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    assert "pip install" in result.stderr


def test_a_broken_engine_is_told(tmp_path: Path) -> None:
    """The package is there, but its native library does not load."""
    (tmp_path / "xllamacpp").mkdir()
    (tmp_path / "xllamacpp" / "__init__.py").write_text("raise ImportError('no libgomp')\n")
    run = Backend.start("127.0.0.1:0", tmp_path, PYTHONPATH=str(tmp_path))
    assert run.process.wait(STOP_TIMEOUT) == 3
    run.stop()
    assert "no libgomp" in run.errors()
    assert "pip install" in run.errors()


def test_installed_beside_an_environment(tmp_path: Path, models: Path) -> None:
    """As a wheel puts it: the environment's own interpreter is found."""
    environment_ = tmp_path / "venv"
    copy = shutil.copytree(RUN.parent, environment_ / "share/corral/backends/llama_cpp")
    (environment_ / "pyvenv.cfg").touch()
    (environment_ / "bin").mkdir()
    python = environment_ / "bin" / "python3"
    python.write_text(f'#!/bin/sh\necho "this one" >&2\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    run = Backend.start("127.0.0.1:0", tmp_path, run=copy / "run.sh", CORRAL_PYTHON="")
    try:
        assert run.load(models / "count.gguf").success
        assert "this one" in run.errors()
    finally:
        assert run.stop() == 0


@pytest.mark.parametrize("address", ["nonsense", "unix:", "127.0.0.1:99999", "unix:/" + "x" * 200])
def test_bad_addresses(address: str) -> None:
    result = subprocess.run(
        [RUN, "--addr", address],
        check=False,
        capture_output=True,
        text=True,
        env=backend_environment(),
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "--addr" in result.stderr


def test_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = Backend.spawn(["--addr", f"127.0.0.1:{port}"], tmp_path)
        assert run.process.wait(STOP_TIMEOUT) == 1
        run.stop()
    assert f"can not listen on 127.0.0.1:{port}" in run.errors()


def test_two_backends_on_one_port(tmp_path: Path) -> None:
    with backend("127.0.0.1:0", tmp_path / "one") as one:
        run = Backend.spawn(["--addr", one.address], tmp_path / "two")
        assert run.process.wait(STOP_TIMEOUT) == 1
        run.stop()


def test_live_socket_is_left_alone_and_stale_one_replaced(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/b.sock"
    first = Backend.start(address, tmp_path / "first")
    second = Backend.spawn(["--addr", address], tmp_path / "second")
    assert second.process.wait(STOP_TIMEOUT) == 1
    second.stop()
    assert "in use" in second.errors()
    with first.stub() as stub:
        assert stub.Health(pb.HealthMessage()).message == b"OK"
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert (tmp_path / "b.sock").exists()
    with backend(address, tmp_path / "third") as third, third.stub() as stub:
        assert stub.Health(pb.HealthMessage()).message == b"OK"
    assert not (tmp_path / "b.sock").exists()


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "b.sock").write_text("precious")
    run = Backend.spawn(["--addr", f"unix:{tmp_path}/b.sock"], tmp_path)
    assert run.process.wait(STOP_TIMEOUT) == 1
    run.stop()
    assert "is no socket" in run.errors()
    assert (tmp_path / "b.sock").read_text() == "precious"


# --- The token --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [("authorization", "Bearer wrong")],
        [("authorization", "bearer secret")],
        [("authorization", "Bearer secret ")],
        [("authorization", "secret")],
    ],
)
def test_wrong_tokens(tmp_path: Path, metadata: list[tuple[str, str]] | None) -> None:
    started = backend("127.0.0.1:0", tmp_path, LOCALAI_GRPC_AUTH_TOKEN="secret")
    with started as run, run.stub() as stub:
        for call in (
            lambda: stub.Health(pb.HealthMessage(), metadata=metadata),
            lambda: list(stub.PredictStream(pb.PredictOptions(), metadata=metadata)),
            lambda: stub.TTS(pb.TTSRequest(), metadata=metadata),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        right = [("authorization", "Bearer secret")]
        assert stub.Health(pb.HealthMessage(), metadata=right).message == b"OK"


# --- Loading ----------------------------------------------------------------------------------


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
    # None of them harms the next load.
    assert started.load(models / "count.gguf").success


def test_model_is_found_in_its_folder(started: Backend, models: Path) -> None:
    with started.stub() as stub:
        request = pb.ModelOptions(Model="count.gguf", ModelPath=str(models))
        assert stub.LoadModel(request).success


def test_the_engines_reason_is_told(started: Backend, models: Path) -> None:
    data = (models / "count.gguf").read_bytes()
    # The length in front of the name stays the same.
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
    request = pb.ModelOptions(ModelFile=str(models / "count.gguf"), **{field: "no.gguf"})
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


def test_metadata_file() -> None:
    data = json.loads((RUN.parent / "metadata.json").read_text())
    assert data["name"] == data["alias"] == "llama-cpp"
    assert data["corral"]["announces"] is True


# --- Ending -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(tmp_path: Path, temporary: Path, models: Path, number: int) -> None:
    run = Backend.start(f"unix:{tmp_path}/b.sock", tmp_path, TMPDIR=str(temporary))
    assert run.load(models / "slow.gguf", Options=["parallel:2"]).success
    engine = run.engine
    assert scratch_folders(run.process.pid, temporary)
    with run.stub() as stub:
        call = stub.PredictStream(pb.PredictOptions(Prompt="one", Tokens=1000, IgnoreEOS=True))
        next(call)
        begun = time.monotonic()
        assert run.stop(number) == 0
        assert time.monotonic() - begun < TERMINATED_WITHIN
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)
    assert not alive(engine)
    assert not (tmp_path / "b.sock").exists()
    assert not list(temporary.iterdir())


def test_it_ends_while_a_long_prompt_is_read(tmp_path: Path, models: Path) -> None:
    run = Backend.start(f"unix:{tmp_path}/b.sock", tmp_path)
    assert run.load(models / "slow.gguf", ContextSize=2048).success
    with run.stub() as stub:
        call = stub.Predict.future(pb.PredictOptions(Prompt="one " * 2000, Tokens=1))
        eventually_sync(
            lambda: stub.Status(pb.HealthMessage()).state == pb.StatusResponse.BUSY,
            timeout=CALL_TIMEOUT,
            what="its work",
        )
        begun = time.monotonic()
        assert run.stop() == 0
        assert time.monotonic() - begun < TERMINATED_WITHIN
        assert call.exception() is not None


def orphan(tmp_path: Path, **env: str) -> tuple[int, int, str]:
    """A backend whose parent is a process of its own: backend pid, parent pid, address."""
    address = f"unix:{tmp_path}/b.sock"
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with (tmp_path / "stderr.log").open("ab") as stderr:
        parent = subprocess.Popen(
            [sys.executable, "-c", script, str(RUN), "--addr", address],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=backend_environment(**env),
        )
    assert parent.stdout is not None
    lines = {parent.stdout.readline().split()[0], parent.stdout.readline().split()[0]}
    pid = int((lines - {"ready"}).pop())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    return pid, parent.pid, address


def test_it_leaves_when_its_parent_is_killed(tmp_path: Path) -> None:
    pid, _, _ = orphan(tmp_path)
    eventually_sync(lambda: not alive(pid), timeout=ORPHANED_WITHIN, what="the backend is gone")
    assert not (tmp_path / "b.sock").exists()


def test_it_stays_when_it_may_be_adopted(tmp_path: Path) -> None:
    pid, _, address = orphan(tmp_path, LOCALAI_BACKEND_PARENT_WATCH="false")
    try:
        with grpc.insecure_channel(address) as channel:
            stub = backend_pb2_grpc.BackendStub(channel)
            for _ in range(3):
                assert stub.Health(pb.HealthMessage(), timeout=CALL_TIMEOUT).message == b"OK"
    finally:
        os.kill(pid, signal.SIGTERM)
    eventually_sync(lambda: not alive(pid), timeout=TERMINATED_WITHIN, what="the backend is gone")


def test_a_killed_backend_leaves_no_engine(tmp_path: Path, models: Path) -> None:
    run = Backend.start(f"unix:{tmp_path}/b.sock", tmp_path)
    assert run.load(models / "count.gguf").success
    engine = run.engine
    assert engine
    run.stop(signal.SIGKILL)
    eventually_sync(lambda: not alive(engine), timeout=ORPHANED_WITHIN, what="the engine is gone")


def test_what_a_killed_backend_left_is_removed_by_the_next(
    tmp_path: Path, temporary: Path, models: Path
) -> None:
    run = Backend.start("127.0.0.1:0", tmp_path, TMPDIR=str(temporary))
    assert run.load(models / "count.gguf").success
    engine = run.engine
    run.stop(signal.SIGKILL)
    eventually_sync(lambda: not alive(engine), timeout=ORPHANED_WITHIN, what="the engine is gone")
    (left,) = temporary.iterdir()
    long_ago = time.time() - 3600
    os.utime(left, (long_ago, long_ago))
    with backend("127.0.0.1:0", tmp_path, TMPDIR=str(temporary)) as following:
        assert following.load(models / "count.gguf").success
        assert not left.exists()
        assert len(scratch_folders(following.process.pid, temporary)) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_it_ends_as_its_engine_ends(tmp_path: Path, models: Path, number: int) -> None:
    run = Backend.start(f"unix:{tmp_path}/b.sock", tmp_path)
    assert run.load(models / "count.gguf").success
    os.kill(run.engine, number)
    assert run.process.wait(STOP_TIMEOUT) == -number
    run.stop()
    assert signal.Signals(number).name in run.errors()
    assert not (tmp_path / "b.sock").exists()


def test_a_native_abort_is_a_crash_with_its_last_words(tmp_path: Path, models: Path) -> None:
    run = Backend.start(f"unix:{tmp_path}/b.sock", tmp_path)
    with pytest.raises(grpc.RpcError) as caught:
        run.load(models / "duplicate_vocab.gguf")
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert run.process.wait(STOP_TIMEOUT) == -signal.SIGABRT
    run.stop()
    assert "GGML_ASSERT" in run.errors()
    assert "SIGABRT" in run.errors()
    assert not children(run.process.pid)
