"""Records how calls walk through the services' modules: `make walk`, or with `--list cold` one of them.

Five walks are recorded in the process that does the work: a cold Predict through the gateway to a fake
backend, a warm one, the crash of a backend (SIGKILL) under a call, and an install from an http:// source,
once the gallery's part and once the command line's. `--check` fails if a walk is longer than its goal.
What a call, a change of file and a change of package are: scripts/call_recorder.py.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import http.server
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
)
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from backends.fake.installing import install as install_fake
from corral.backend import backend_pb2, backend_pb2_grpc
from corral.gallery.v1 import gallery_pb2, gallery_pb2_grpc
from corral.loader.v1 import loader_pb2, loader_pb2_grpc
from scripts.call_recorder import Call, Figures, Function, Recorder
from services.common.process import logging as logs
from services.common.rpc.health import HealthServicer
from services.common.rpc.server import serving

NEVER = 3600.0
WALKS = ("cold", "warm", "crash", "gallery", "cli")
WEIGHTS = bytes(range(256)) * 800
MODEL = (("corral-model", "m"),)

WIRING = ("services.loader.__main__", "services.loader.wiring")
OPTIONS = ("services.loader.options.effective", "effective_values")
OCCUPANCY = ("services.loader.supervision.supervisor", "Supervisor.occupancy")
END = ("services.loader.instances.instance", "Instance.end")
MOST_CHANGES = {"cold": 200, "crash": 50, "gallery": 120}
"""The most changes of package that a walk may have."""


def times(calls: Sequence[Call], counted: tuple[str, str]) -> int:
    """Return how often a function was called; SystemExit if it does not exist."""
    module, name = counted
    try:
        functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        raise SystemExit(f"{module}.{name} does not exist: adapt scripts/walk.py") from None
    return Counter(call.callee for call in calls)[Function(module, name)]


def broken_goals(walks: dict[str, Sequence[Call]]) -> list[str]:
    """Return a line for each goal that a walk misses."""
    wiring = sum(call.callee.module in WIRING for call in walks["cold"])
    goals = [
        (f"{name}: changes of package", Figures.of(walks[name]).changes_of_package, most)
        for name, most in MOST_CHANGES.items()
    ]
    goals += [
        ("cold: calls into the wiring", wiring, 0),
        ("cold: computations of the options", times(walks["cold"], OPTIONS), 1),
        ("cold: questions for the model's occupancy", times(walks["cold"], OCCUPANCY), 1),
        ("crash: ends of the instance", times(walks["crash"], END), 1),
    ]
    return [f"{what}: {found}, at most {most}" for what, found, most in goals if found > most]


@asynccontextmanager
async def served(service: str, **settings: Any) -> AsyncIterator[aio.Channel]:
    """Serve a service in this process, wired as in its own."""
    module = importlib.import_module(f"services.{service}.__main__")
    config = importlib.import_module(f"services.{service}.config")
    values = getattr(config, f"{service.capitalize()}Settings")(
        listen="127.0.0.1:0", metrics=None, grace=1, **settings
    )
    health = HealthServicer()
    async with AsyncExitStack() as stack:
        mounts = await module.build(values, stack, health)
        async with (
            serving(name=service, settings=values, mounts=mounts, health=health) as server,
            aio.insecure_channel(server.address) as channel,
        ):
            yield channel


async def walk_loader(recorder: Recorder, home: Path) -> dict[str, Sequence[Call]]:
    """Record a cold call, a warm one, and a crash under a third."""
    install_fake(home / "backends", "fake", {}, exec_=True)
    (home / "models").mkdir()
    config = {"name": "m", "backend": "fake", "parameters": {"model": "m.bin"}}
    (home / "models/m.yaml").write_text(json.dumps(config))
    (home / "models/m.bin").write_bytes(WEIGHTS)
    request = backend_pb2.PredictOptions(Prompt="one two three")
    rare = dict.fromkeys(
        ("models_interval", "backends_interval", "measure_interval", "watchdog_interval"), NEVER
    )
    async with served("loader", runtime_path=home / "runtime", **rare) as channel:
        data = backend_pb2_grpc.BackendStub(channel)
        await recorder.quiet([])
        with recorder.recording() as cold:
            await data.Predict(request, metadata=MODEL)
            await recorder.quiet(cold)
        with recorder.recording() as warm:
            await data.Predict(request, metadata=MODEL)
            await recorder.quiet(warm)
        control = loader_pb2_grpc.LoaderServiceStub(channel)
        model = (await control.GetModel(loader_pb2.GetModelRequest(name="models/m"))).model
        stalled = data.PredictStream(request, metadata=(*MODEL, ("fake-set", "stall_after=1")))
        await stalled.read()
        with recorder.recording() as crash:
            os.kill(model.instances[0].pid, signal.SIGKILL)
            if await stalled.code() != grpc.StatusCode.UNAVAILABLE:
                raise SystemExit(f"the call did not fail as it should: {stalled!r}")
            await recorder.quiet(crash)
    return {"cold": cold, "warm": warm, "crash": crash}


@contextmanager
def http_gallery(home: Path) -> Iterator[list[dict[str, str]]]:
    """Serve a gallery of one entry over HTTP; yields the galleries' setting."""
    home.mkdir()
    (home / "m.gguf").write_bytes(WEIGHTS)
    handler = type("Handler", (http.server.SimpleHTTPRequestHandler,), {"log_message": _ignore})
    serve: Any = functools.partial(handler, directory=str(home))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        config = {"backend": "llama-cpp", "parameters": {"model": "m.gguf"}}
        digest = hashlib.sha256(WEIGHTS).hexdigest()
        file = {"filename": "m.gguf", "uri": f"{address}/m.gguf", "sha256": digest}
        index = [{"name": "m", "config_file": config, "files": [file]}]
        (home / "index.yaml").write_text(json.dumps(index))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield [{"name": "walk", "url": f"{address}/index.yaml"}]
        server.shutdown()


def _ignore(*_: Any) -> None:
    pass


async def walk_gallery(recorder: Recorder, home: Path) -> Sequence[Call]:
    """Record an install, followed by a client that is not ours."""
    with http_gallery(home / "http") as galleries:
        async with served(
            "gallery", models_path=home / "installed", galleries=galleries, built_in_gallery=False
        ) as channel:
            stub = gallery_pb2_grpc.GalleryServiceStub(channel)
            await recorder.quiet([])
            with recorder.recording() as calls:
                begun = await stub.InstallModel(gallery_pb2.InstallModelRequest(entry="m"))
                await _followed(
                    stub.WatchOperation(gallery_pb2.WatchOperationRequest(name=begun.name))
                )
                await recorder.quiet(calls)
    return calls


async def _followed(updates: Any) -> None:
    async for update in updates:
        last = update.operation
    if not last.done or last.HasField("error"):
        raise SystemExit(f"the install failed: {last}")


def walk_cli(recorder: Recorder, home: Path) -> Sequence[Call]:
    """Record `corral install` against a gallery in another process."""
    with http_gallery(home / "cli") as galleries, ExitStack() as stack:
        os.environ["CORRAL_HOME"] = str(home / "cli")
        command = [sys.executable, "-m", "services.gallery", "--listen", "127.0.0.1:0"]
        command += ["--metrics", "", "--log-level", "error", "--no-built-in-gallery"]
        process = stack.enter_context(
            subprocess.Popen(
                [*command, "--galleries", json.dumps(galleries)], stdout=subprocess.PIPE, text=True
            )
        )
        stack.callback(process.terminate)
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        app = importlib.import_module("services.cli.app").app
        out = io.StringIO()
        with recorder.recording() as calls, redirect_stdout(out), redirect_stderr(out):
            app(["install", "m", "--gallery", address], standalone_mode=False)
    return calls


def main() -> int:
    """Record the walks and print their figures; with `--check` return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--list", metavar="WALK", choices=WALKS, help="print the calls of one walk")
    parser.add_argument("--check", action="store_true", help="fail if a goal is missed")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("CORRAL_", "LOCALAI_"))]:
        del os.environ[name]
    recorder = Recorder()
    with tempfile.TemporaryDirectory(prefix="corral-walk-") as folder, open(os.devnull, "w") as log:
        home = Path(folder)
        os.environ["CORRAL_HOME"] = str(home)
        logs.configure(stream=log)
        recorder.install()
        walks = asyncio.run(walk_loader(recorder, home))
        walks["gallery"] = asyncio.run(walk_gallery(recorder, home))
        walks["cli"] = walk_cli(recorder, home)
    if options.list:
        for call in walks[options.list]:
            if call.changes_file:
                print(f"{call.caller} -> {call.callee}")
        return 0
    columns = [field.name for field in fields(Figures)]
    print("walk".ljust(8), *(name.replace("_", " ").rjust(len(name) + 2) for name in columns))
    for name, calls in walks.items():
        figures = astuple(Figures.of(calls))
        cells = (str(n).rjust(len(c) + 2) for c, n in zip(columns, figures, strict=True))
        print(name.ljust(8), *cells)
    broken = broken_goals(walks)
    for line in broken:
        print(f"missed: {line}")
    return int(options.check and bool(broken))


if __name__ == "__main__":
    sys.exit(main())
