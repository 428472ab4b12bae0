"""What the loader adds to a backend's own start: from listening to READY, as a watching client sees it.

Everything after listening is counted: detecting that it listens, the calls of Health and LoadModel, and the
notification. It is compared with the same program without the loader, where a client calls Health and
LoadModel as soon as it listens: the time that this takes too is the backend's.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from backends.fake.installing import install
from corral.backend import backend_pb2, backend_pb2_grpc
from corral.loader.v1 import loader_pb2 as pb
from tests.tools import tiny_gguf
from tests.tools.llama_backend import RUN
from tests.tools.processes import free_port
from tests.tools.running import LoaderUnderTest
from tests.tools.service import environment
from tests.tools.waiting import eventually

from .figures import heading, ms, show, unload

GOAL = 0.05
"""Seconds."""
REPETITIONS = 9
FULL_REPETITIONS = 30
STEP = 0.0005
TIMEOUT = 20.0
KINDS = {
    "port": "a Python backend on a port, which says nothing",
    "socket": "a Python backend on a Unix socket, which announces itself",
    "llama": "llama.cpp on a Unix socket, with a tiny model",
}


@dataclass
class Result:
    """Seconds from the start of the process until it listens, and from then until the model is loaded."""

    alone: list[float] = field(default_factory=list)
    alone_loaded: list[float] = field(default_factory=list)
    loader: list[float] = field(default_factory=list)
    loader_ready: list[float] = field(default_factory=list)


async def run(*, full: bool) -> None:
    """Measure and print."""
    repetitions = FULL_REPETITIONS if full else REPETITIONS
    results = {kind: Result() for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        loader = _laid_out(Path(folder) / "home")
        await loader.start("--log-level", "warn")
        try:
            for _ in range(repetitions):
                for kind, result in results.items():
                    await _alone(loader, kind, result)
                    await _through(loader, kind, result)
        finally:
            await loader.close()
    heading(f"startup: {repetitions} interleaved pairs, medians, from the start of the process")
    for kind, result in results.items():
        _report(kind, result)


def _report(kind: str, result: Result) -> None:
    median: Callable[[list[float]], float] = statistics.median
    ready = median(result.loader_ready)
    beyond = ready - median(result.alone_loaded)
    alone = median([sum(pair) for pair in zip(result.alone, result.alone_loaded, strict=True)])
    through = median([sum(pair) for pair in zip(result.loader, result.loader_ready, strict=True)])
    show(KINDS[kind], "")
    show("  start to listening, alone", ms(median(result.alone)))
    show("  start to listening, through the loader", ms(median(result.loader)))
    show("  listening to loaded, by a direct client", ms(median(result.alone_loaded)))
    # llama.cpp's own time to read a model is not the loader's: the goal is only for the time beyond it.
    met = None if kind == "llama" else ready <= GOAL
    show("  listening to READY, through the loader", ms(ready), ms(GOAL), met=met)
    show("    slowest", ms(max(result.loader_ready)))
    show("    beyond the direct client", ms(beyond), ms(GOAL), met=beyond <= GOAL)
    show("  start to READY against start to loaded", f"{through / alone:.2f}")


def _laid_out(home: Path) -> LoaderUnderTest:
    loader = LoaderUnderTest(home)
    loader.add_backend("port")
    install(loader.backends, "socket", {}, exec_=True)
    (loader.backends / "llama").symlink_to(RUN.parent)
    tiny_gguf.write("count", loader.models / "llama.bin")
    for kind in KINDS:
        loader.add_model(kind, kind)
    return loader


async def _alone(loader: LoaderUnderTest, kind: str, result: Result) -> None:
    folder = loader.backends / kind
    port = f"127.0.0.1:{free_port()}"
    address = port if kind == "port" else f"unix:{loader.home / f'{len(result.alone)}{kind}.sock'}"
    started = time.time()
    process = await asyncio.create_subprocess_exec(
        folder / "run.sh",
        "--addr",
        address,
        cwd=folder,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment(CORRAL_PYTHON=sys.executable),
        start_new_session=True,
    )
    try:
        listened = await _listens(address)
        result.alone.append(listened - started)
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = backend_pb2_grpc.BackendStub(channel)
            await stub.Health(backend_pb2.HealthMessage(), wait_for_ready=True, timeout=TIMEOUT)
            file = f"{kind}.bin"
            options = backend_pb2.ModelOptions(Model=file, ModelFile=str(loader.models / file))
            answer = await stub.LoadModel(options, timeout=TIMEOUT)
            assert answer.success, answer.message
            result.alone_loaded.append(time.time() - listened)
    finally:
        process.terminate()
        await process.wait()


async def _through(loader: LoaderUnderTest, kind: str, result: Result) -> None:
    watch = loader.control.WatchModels(pb.WatchModelsRequest())
    while (await watch.read()).change_type != pb.WatchModelsResponse.CHANGE_TYPE_SNAPSHOT_END:
        pass
    request = pb.LoadModelRequest(name=kind, return_immediately=True)
    await loader.control.LoadModel(request)
    model = await _seen(watch, kind, lambda model: bool(model.instances and model.instances[0].pid))
    instance = model.instances[0]
    started = instance.start_time.ToMicroseconds() / 1e6
    listening = asyncio.create_task(_listens(instance.address))
    await _seen(watch, kind, lambda model: model.state == pb.Model.STATE_READY)
    ready = time.time()
    watch.cancel()
    listened = await listening
    result.loader.append(listened - started)
    result.loader_ready.append(ready - listened)
    await unload(loader, kind)


async def _seen(watch: Any, name: str, condition: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(TIMEOUT):
        while True:
            model = (await watch.read()).model
            if model.name == f"models/{name}" and condition(model):
                return model


async def _listens(address: str) -> float:
    """Return when a process listens at an address; found by a lookup, without connecting."""
    await eventually(lambda: _is_listening(address), timeout=TIMEOUT, interval=STEP)
    return time.time()


def _is_listening(address: str) -> bool:
    if address.startswith("unix:"):
        # The socket's name appears when it is bound, an instant before it listens.
        return Path(address.removeprefix("unix:")).exists()
    port = f":{int(address.rpartition(':')[2]):04X}"
    for table in ("/proc/net/tcp6", "/proc/net/tcp"):  # gRPC takes IPv6 sockets for IPv4 too
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            if local.endswith(port) and state == "0A":  # LISTEN
                return True
    return False
