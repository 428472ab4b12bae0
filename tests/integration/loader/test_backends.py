"""Backends of a running loader: listed with all details, and tracked as they come and go."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2 as pb
from services.common.errors import CorralError
from services.common.rpc.status import from_rpc_error
from tests.fakes import backend_fake
from tests.tools.backend_folders import add
from tests.tools.loader_calls import MODEL, load
from tests.tools.running import LoaderUnderTest
from tests.tools.waiting import eventually

FAST = ("--backends-interval", "50ms", "--load-backoff", "100ms")


async def listed(loader: LoaderUnderTest) -> dict[str, pb.Backend]:
    answer = await loader.control.ListBackends(pb.ListBackendsRequest())
    assert answer.total_size == len(answer.backends)
    return {item.name.removeprefix("backends/"): item for item in answer.backends}


async def start(loader: LoaderUnderTest, *arguments: str, **env: str) -> None:
    system = str(loader.home / "system")
    env["LOCALAI_FORCE_META_BACKEND_CAPABILITY"] = "default"
    await loader.start(*FAST, "--backends-system-path", system, *arguments, env=env)


async def refused(loader: LoaderUnderTest, model: str = "m") -> CorralError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await loader.control.LoadModel(load(model), timeout=20)
    return from_rpc_error(failed.value)


def write_program(path: Path, *, fails: bool = False) -> None:
    """Write the scripted backend as a program of that name, or one that exits at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fake = shlex.join([sys.executable, backend_fake.__file__])
    path.write_text(
        f'#!/bin/sh\n{"echo no such instruction >&2; exit 4" if fails else ""}\nexec {fake} "$@"\n'
    )
    path.chmod(0o755)


async def test_all_that_is_known_is_listed(loader: LoaderUnderTest) -> None:
    metadata = {
        "alias": "whisper",
        "version": "2.0",
        "gallery_url": "https://gallery.example",
        "installed_at": "2026-01-02T03:04:05Z",
        "corral": {"concurrency": 3},
    }
    add(loader.backends, "cpu-whisper", metadata)
    add(loader.backends, "cuda12-whisper", {"alias": "whisper"})
    add(loader.backends, "broken", "{")
    add(loader.home / "system", "cpu-whisper", {"version": "hidden"})
    add(loader.home / "system", "piper")
    await start(loader, "--external-grpc-backends", "afar:127.0.0.1:50060,typo:/opt/x/run.sh")
    found = await listed(loader)
    assert list(found) == [
        *("afar", "typo", "broken", "whisper", "cpu-whisper", "cuda12-whisper", "piper")
    ]
    whisper = found["cpu-whisper"]
    assert whisper.source is pb.Backend.SOURCE_USER and not whisper.system and not whisper.error
    assert whisper.version == "2.0" and whisper.gallery_url == "https://gallery.example"
    assert whisper.install_time.ToJsonString() == "2026-01-02T03:04:05Z"
    assert list(whisper.usecases) == ["transcript", "vad"] and list(whisper.formats) == ["ggml"]
    assert whisper.max_concurrent_calls == 3 and whisper.revision
    assert list(whisper.aliases) == ["whisper"] and whisper.run_file.endswith("cpu-whisper/run.sh")
    name = found["whisper"]
    assert name.chosen == "backends/cpu-whisper" and "cpu-whisper" in name.explanation
    assert not name.run_file
    cuda = found["cuda12-whisper"]
    assert list(cuda.requires) == ["nvidia-cuda-12"] and "needs nvidia-cuda-12" in cuda.error
    assert found["piper"].source is pb.Backend.SOURCE_SYSTEM and found["piper"].system
    assert found["afar"].address == "127.0.0.1:50060"
    assert found["afar"].source is pb.Backend.SOURCE_EXTERNAL
    assert "no such file" in found["typo"].error and "metadata.json" in found["broken"].error


async def test_they_are_followed_while_they_come_and_go(loader: LoaderUnderTest) -> None:
    await start(loader)
    assert await listed(loader) == {}

    async def one(**conditions: Any) -> pb.Backend:
        async def there() -> pb.Backend | None:
            item = (await listed(loader)).get("one")
            return (
                item if item and all(getattr(item, k) == v for k, v in conditions.items()) else None
            )

        found: pb.Backend = await eventually(there, what=f"backend one with {conditions}")
        return found

    folder = add(loader.backends, "one", {"version": "1"})
    first = await one(version="1", error="")
    add(loader.backends, "one", {"version": "2"})
    assert (await one(version="2")).revision != first.revision
    add(loader.backends, "one", "{")
    await one(version="")
    add(loader.backends, "one", {"version": "3"})
    await one(version="3", error="")
    (folder / "run.sh").unlink()
    assert "run.sh" in (await eventually(lambda: broken(loader), what="an error")).error
    (folder / "metadata.json").unlink()

    async def gone() -> bool:
        return not await listed(loader)

    await eventually(gone, what="the end of the backend")


async def broken(loader: LoaderUnderTest) -> pb.Backend | None:
    item = (await listed(loader))["one"]
    return item if item.error else None


async def test_what_was_just_installed_is_used_at_once(loader: LoaderUnderTest) -> None:
    loader.add_model("m", "whisper")
    loader.add_model("any")
    nothing = str(loader.home / "system")
    await loader.start("--backends-interval", "1h", "--backends-system-path", nothing)
    assert (await refused(loader)).message.startswith("backend not found: whisper")
    assert (await refused(loader, "any")).message.startswith("no backends found")
    folder = loader.add_backend("cpu-whisper")
    (folder / "metadata.json").write_text('{"alias": "whisper"}')
    for model in ("m", "any"):
        answer = await loader.control.LoadModel(load(model), timeout=20)
        assert answer.model.instances[0].backend == "cpu-whisper"


async def test_external_ones_of_the_file(loader: LoaderUnderTest) -> None:
    loader.add_model("m", "afar")
    configuration = loader.home / "configuration"
    configuration.mkdir()
    file = configuration / "external_backends.json"
    file.write_text('{"afar": "backends/afar/run.sh"}')
    await start(loader)
    error = await refused(loader)
    assert "looks like a path" in error.message and error.reason == "BACKEND_START_FAILED"
    loader.add_backend("elsewhere")
    file.write_text(json.dumps({"afar": str(loader.backends / "elsewhere" / "run.sh")}))

    async def answers() -> bool:
        try:
            await loader.data.Predict(backend_pb2.PredictOptions(), metadata=MODEL, timeout=20)
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(answers, what="an answer of the external backend")
    assert loader.notes("elsewhere")[0] == "load m.bin"


async def test_a_file_that_nobody_reads(loader: LoaderUnderTest) -> None:
    (loader.models / "loose.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    loader.add_backend("piper")
    await start(loader)
    error = await refused(loader, "loose.gguf")
    assert error.reason == "BACKEND_NOT_FOUND"
    assert "no backends found" in error.message and "[piper]: it reads onnx" in error.message


async def test_localai_2s_assets_and_their_fallback(loader: LoaderUnderTest) -> None:
    programs = loader.home / "data" / "backend-assets" / "grpc"
    for name in ("llama-cpp", "llama-cpp-avx", "llama-cpp-avx2"):
        write_program(programs / name, fails=True)
    write_program(programs / "llama-cpp-fallback")
    write_program(programs / "local-store")
    (loader.models / "loose.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    loader.add_model("explicit", "llama")
    await start(loader, BACKEND_ASSETS_PATH=str(loader.home / "data"))
    found = await listed(loader)
    assert {item.source for item in found.values()} == {pb.Backend.SOURCE_ASSETS}
    assert found["llama-cpp"].run_file.startswith(str(programs / "llama-cpp"))
    for model in ("loose.gguf", "explicit"):
        answer = await loader.control.LoadModel(load(model), timeout=30)
        assert answer.model.instances[0].backend == "llama-cpp-fallback"


NATIVE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int helper(void);
int main(int count, char **arguments) {
    char program[4096] = "", folder[4096] = "";
    if (readlink("/proc/self/exe", program, 4095) < 0 || !getcwd(folder, 4096)) return helper();
    fprintf(stderr, "run by %s in %s, helped by %d\n", program, folder, helper());
    arguments[0] = getenv("RUN_THEN");
    unsetenv("LD_LIBRARY_PATH");
    execv(arguments[0], arguments);
    return 5;
}
"""


@pytest.mark.skipif(not Path("/usr/bin/cc").exists(), reason="needs a C compiler")
async def test_assets_with_libraries_and_a_loader_of_their_own(loader: LoaderUnderTest) -> None:
    assets = loader.home / "data" / "backend-assets"
    (assets / "lib").mkdir(parents=True)
    (assets / "grpc").mkdir()
    fake = loader.add_backend("fake") / "run.sh"
    (loader.home / "main.c").write_text(NATIVE)
    (loader.home / "helper.c").write_text("int helper(void) { return 42; }\n")
    library = assets / "lib" / "libhelper.so"
    await compiled("-shared", "-fPIC", "-o", library, loader.home / "helper.c")
    await compiled("-o", assets / "grpc" / "whisper", loader.home / "main.c", library)
    loader.add_model("m", "whisper")
    arguments = ("--backend-assets-path", str(loader.home / "data"))
    await start(loader, *arguments, RUN_THEN=str(fake))
    await loader.control.LoadModel(load(), timeout=30)
    program = assets / "grpc" / "whisper"
    assert f"run by {program} in {program.parent}, helped by 42" in await said(loader)
    await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"))
    (assets / "lib" / "ld.so").write_bytes(dynamic_loader().read_bytes())
    (assets / "lib" / "ld.so").chmod(0o755)

    async def wrapped() -> bool:
        await loader.control.UnloadModel(pb.UnloadModelRequest(name="m"))
        await loader.control.LoadModel(load(), timeout=30)
        return f"run by {assets / 'lib' / 'ld.so'} in {program.parent}" in await said(loader)

    await eventually(wrapped, what="a start by ld.so", timeout=20)


def dynamic_loader() -> Path:
    return next(Path("/").glob("lib*/ld-linux*.so*")).resolve()


async def compiled(*arguments: str | Path) -> None:
    process = await asyncio.create_subprocess_exec("/usr/bin/cc", *map(str, arguments))
    assert await process.wait() == 0


async def said(loader: LoaderUnderTest) -> str:
    lines = loader.control.StreamLogs(pb.StreamLogsRequest(name="m"))
    return "\n".join([item.line.text async for item in lines])


async def test_a_replaced_backend_is_taken_up_and_forgiven(loader: LoaderUnderTest) -> None:
    """Instances move to the new version once idle; models that failed to load are retried."""
    folder = loader.add_backend("fake")
    loader.add_backend("broken", load="refuse")
    loader.add_model("m", "fake")
    loader.add_model("n", "broken")
    await loader.start("--backends-interval", "50ms", "--load-backoff", "60s")
    before = (await loader.control.LoadModel(load("m"))).model.instances[0].pid
    with pytest.raises(grpc.aio.AioRpcError):
        await loader.control.LoadModel(load("n"))
    loader.add_backend("other")  # they are not affected
    for name in ("fake", "broken"):
        (loader.backends / name / "metadata.json").write_text('{"version": "2"}')

    async def reloaded() -> bool:
        model = (await loader.control.GetModel(pb.GetModelRequest(name="m"))).model
        return bool(model.last_unload.cause == pb.Unload.CAUSE_CHANGED)

    await eventually(reloaded, what="unload of the old version")
    loader.behave("broken")

    async def forgiven() -> bool:
        model = (await loader.control.GetModel(pb.GetModelRequest(name="n"))).model
        return model.state == pb.Model.STATE_UNLOADED and not model.failures

    await eventually(forgiven, what="end of the back-off")
    await loader.control.LoadModel(load("n"))
    assert (await loader.control.LoadModel(load("m"))).model.instances[0].pid != before
    assert folder.exists()
