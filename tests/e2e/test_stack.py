"""The main job over all four services, with real llama.cpp and models small enough for any machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from corral.backend import backend_pb2, backend_pb2_grpc
from corral.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from services.common.rpc.status import from_rpc_error
from tests.e2e.conftest import Stack
from tests.e2e.test_same_tokens import ask
from tests.tools.processes import alive, descendants
from tests.tools.service import ROOT, installed
from tests.tools.waiting import eventually

COUNT = (("corral-model", "tiny-count"),)
ENDLESS = backend_pb2.PredictOptions(Prompt="one", Tokens=100_000, IgnoreEOS=True)


async def test_install_load_run_status_unload(stack: Stack) -> None:
    available = json.loads(await stack.corral("models", "--available", "--json"))
    assert "tiny-count" in json.dumps(available)
    await stack.corral("install", "tiny-count")
    await stack.corral("load", "tiny-count")
    answer = await stack.corral("run", "tiny-count", "one two three", "--raw", "--max-tokens", "3")
    assert answer == " four five six\n"
    status = await stack.corral("status")
    assert "tiny-count" in status and "ready" in status.lower()
    assert "starting llama-cpp" in await stack.corral("logs", "tiny-count")

    async with grpc.aio.insecure_channel(stack.addresses["monitor"]) as channel:
        monitor: Any = monitor_pb2_grpc.MonitorServiceStub(channel)
        found = (await monitor.GetStatus(monitor_pb2.GetStatusRequest(name="tiny-count"))).status
        assert found.state == monitor_pb2.ModelStatus.STATE_READY
        assert found.source == monitor_pb2.ModelStatus.SOURCE_BACKEND
        assert found.memory_bytes > 10_000_000 and found.process.rss_bytes > 10_000_000

    url = f"http://{stack.addresses['http']}/metrics"

    def counted() -> bool:
        with urllib.request.urlopen(url, timeout=5) as page:
            text = page.read().decode()
        return 'path="/backend.Backend/PredictStream",service="backend",status="OK"} 1.0' in text

    await eventually(lambda: asyncio.to_thread(counted), what="the call among the metrics")
    await stack.corral("unload", "tiny-count")
    assert "FAILED_PRECONDITION" not in await stack.corral("status")


async def test_embeddings_and_other_languages(stack: Stack, plain_stubs: Path) -> None:
    await stack.corral("install", "tiny-embed")
    order = {"rpc": "Embedding", "request": {"Prompt": "paris"}}
    (answer,) = await ask(
        plain_stubs, stack.addresses["loader"], metadata=[["corral-model", "tiny-embed"]], **order
    )
    assert len(answer["embeddings"]) == 64
    await stack.corral("install", "tiny-count")
    # buf's client is written in Go; it is given the .proto file and nothing else.
    process = await asyncio.create_subprocess_exec(
        installed("buf"),
        *("curl", "--protocol", "grpc", "--http2-prior-knowledge"),
        *("--schema", ROOT / "protos" / "corral" / "backend" / "backend.proto"),
        *("-H", "corral-model: tiny-count", "-d", '{"Prompt": "one two", "Tokens": 2}'),
        f"http://{stack.addresses['loader']}/backend.Backend/Predict",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert json.loads(out)["tokens"] == 2


@pytest.mark.parametrize(
    "victim", [lambda stack: min(llamas(stack)), lambda stack: max(llamas(stack))]
)
async def test_kill_the_backend_while_it_streams(
    stack: Stack, victim: Callable[[Stack], int]
) -> None:
    """Whichever of the backend's processes is killed: the one that serves, or the engine's."""
    await stack.corral("install", "tiny-count")
    async with grpc.aio.insecure_channel(stack.addresses["loader"]) as channel:
        data: Any = backend_pb2_grpc.BackendStub(channel)
        stream = data.PredictStream(ENDLESS, metadata=COUNT)
        await stream.read()
        os.kill(victim(stack), signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            while await stream.read() is not grpc.aio.EOF:
                pass
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        error = from_rpc_error(failed.value)
        assert error.reason == "BACKEND_CRASHED", error
        assert "SIGKILL" in error.message
        request = backend_pb2.PredictOptions(Prompt="one two", Tokens=1)
        assert (await data.Predict(request, metadata=COUNT, timeout=20)).message == b" three"


async def test_kill_the_loader_and_it_comes_back(stack: Stack) -> None:
    """No backend outlives the loader by more than 2 s; `corral up` starts a new loader."""
    await stack.corral("install", "tiny-count")
    await stack.corral("load", "tiny-count")
    backends = llamas(stack)
    assert backends
    loader = descendants(stack.process.pid, "services.loader")[0]
    loader.kill()
    await eventually(
        lambda: not any(map(alive, backends)), timeout=2, what="the end of the backend"
    )

    async def answers() -> bool:
        try:
            await stack.corral("load", "tiny-count")
        except AssertionError:
            return False
        return True

    await eventually(answers, timeout=30, what="a new loader")


async def test_a_conversation(stack: Stack) -> None:
    await stack.corral("install", "tiny-count")
    process = await asyncio.create_subprocess_exec(
        *(installed("corral"), "run", "tiny-count", "--chat", "--max-tokens", "3"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=stack.environment,
    )
    out, err = await asyncio.wait_for(process.communicate(b"hello\nand then?\n"), 60)
    assert process.returncode == 0, err.decode()
    assert out.decode().count("one two three") == 2


def llamas(stack: Stack) -> list[int]:
    """Return the pids of the llama.cpp backends below the stack."""
    return [process.pid for process in descendants(stack.process.pid, "llama_cpp")]
