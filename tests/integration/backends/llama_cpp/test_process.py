"""The backend as a process: how it starts, what it refuses, how it stops, what it leaves behind."""

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

# The contract's limits for stopping.
TERMINATED_WITHIN = 2.0
ORPHANED_WITHIN = 2.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("count", "duplicate_vocab"):
        write_tiny(kind, folder / f"{kind}.gguf")
    write_tiny("count", folder / "slow.gguf", layers=24, embd=512)
    return folder


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder with a name short enough for socket paths inside it."""
    folder = tempfile.mkdtemp(prefix="lc")
    yield Path(folder)
    shutil.rmtree(folder)


def scratch_folders(pid: int, base: Path) -> list[Path]:
    return list(base.glob(f"corral-llama-cpp-{pid}-*"))


# --- Starting ---------------------------------------------------------------------------------


def test_unix_address_is_announced_and_private(tmp_path: Path) -> None:
    with backend(f"unix:{tmp_path}/b.sock", tmp_path) as run:
        assert run.line == f"ready llama-cpp unix:{tmp_path}/b.sock\n"
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
    """Even in a working directory whose modules have the same names as the library's."""
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
    """The package is installed, but its native library does not load."""
    (tmp_path / "xllamacpp").mkdir()
    (tmp_path / "xllamacpp" / "__init__.py").write_text("raise ImportError('no libgomp')\n")
    run = Backend.start("127.0.0.1:0", tmp_path, PYTHONPATH=str(tmp_path))
    assert run.process.wait(STOP_TIMEOUT) == 3
    run.stop()
    assert "no libgomp" in run.errors()
    assert "pip install" in run.errors()


def test_installed_beside_an_environment(tmp_path: Path, models: Path) -> None:
    """Installed from a wheel: the environment's own interpreter is found."""
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
    assert "is not a socket" in run.errors()
    assert (tmp_path / "b.sock").read_text() == "precious"


def test_metadata_file() -> None:
    data = json.loads((RUN.parent / "metadata.json").read_text())
    assert data["name"] == data["alias"] == "llama-cpp"
    assert data["corral"]["announces"] is True


# --- The token --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (("authorization", "Bearer wrong"),),
        (("authorization", "bearer secret"),),
        (("authorization", "Bearer secret "),),
        (("authorization", "secret"),),
    ],
)
def test_wrong_tokens(tmp_path: Path, metadata: tuple[tuple[str, str], ...] | None) -> None:
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
        right = (("authorization", "Bearer secret"),)
        assert stub.Health(pb.HealthMessage(), metadata=right).message == b"OK"


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
    """A backend whose parent is a separate process: backend pid, parent pid, address."""
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
