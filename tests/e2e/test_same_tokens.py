"""A client with only backend.proto gets the same answers from the gateway as from the backend."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Stack
from tests.tools.service import ROOT, announced, environment

CLIENT = Path(__file__).with_name("plain_client.py")
RUN = ROOT / "backends" / "llama_cpp" / "run.sh"
SMOLLM = "smollm2-135m-instruct"


async def ask(stubs: Path, address: str, **order: Any) -> list[dict[str, Any]]:
    """Make a call with the plain client; return its answers."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, CLIENT, stubs, address, json.dumps(order)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=stubs,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()
    return [json.loads(line) for line in out.splitlines()]


async def both(
    stack: Stack, stubs: Path, model: str, rpc: str, request: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ask the gateway, and a backend process that Corral did not start."""
    through = await ask(
        stubs,
        stack.addresses["loader"],
        metadata=[["corral-model", model]],
        rpc=rpc,
        request=request,
    )
    models = stack.home / "models"
    (file,) = [path for path in models.glob("*.gguf") if path.stem.lower().startswith(model[:12])]
    backend = await asyncio.create_subprocess_exec(
        *(RUN, "--addr", "127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
        env=environment(CORRAL_PYTHON=sys.executable),
    )
    try:
        address = await announced(backend, "llama-cpp")
        load = {"Model": file.name, "ModelFile": str(file), "ContextSize": 4096, "NBatch": 512}
        direct = await ask(stubs, address, load={**load, "MMap": True}, rpc=rpc, request=request)
    finally:
        backend.terminate()
        await asyncio.wait_for(backend.wait(), 10)
    return through, direct


def said(answers: list[dict[str, Any]]) -> list[str]:
    return [answer.get("message", "") for answer in answers]


@pytest.mark.parametrize("rpc", ["Predict", "PredictStream"])
async def test_tiny(stack: Stack, plain_stubs: Path, rpc: str) -> None:
    await stack.corral("install", "tiny-babble")
    request = {"Prompt": "one two", "Tokens": 30, "Seed": 7, "Temperature": 0.9, "TopK": 40}
    through, direct = await both(stack, plain_stubs, "tiny-babble", rpc, request)
    assert said(through) == said(direct)
    assert len("".join(said(through))) > 20
    assert len(through) > 5 or rpc == "Predict"


@pytest.mark.real
@pytest.mark.timeout(300)
async def test_smollm2(stack: Stack, plain_stubs: Path) -> None:
    """The default model: from the built-in gallery, real, about 100 MB."""
    await stack.corral("install", SMOLLM)
    request = {
        "UseTokenizerTemplate": True,
        "Messages": [{"role": "user", "content": "Tell me a story."}],
        "Tokens": 32,
        "Temperature": 0,
    }
    through, direct = await both(stack, plain_stubs, SMOLLM, "PredictStream", request)
    assert said(through) == said(direct)
    assert len(through) > 5
    text = await stack.corral(
        *("run", SMOLLM, "The capital of France is", "--raw"),
        *("--temperature", "0", "--max-tokens", "8"),
    )
    assert "Paris" in text
