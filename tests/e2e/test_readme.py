"""The README's examples work as written, except for the address and the model's name."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from tests.e2e.conftest import Stack
from tests.tools.service import ROOT, installed

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


async def test_the_python_clients(stack: Stack, tmp_path: Path) -> None:
    await stack.corral("install", "tiny-count")
    programs = blocks("python")
    assert len(programs) == 2
    for code in programs:
        for written, actual in (
            ("127.0.0.1:50051", stack.addresses["loader"]),
            ("smollm2-135m-instruct", "tiny-count"),
        ):
            assert written in code
            code = code.replace(written, actual)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code), stdout=asyncio.subprocess.PIPE, cwd=tmp_path
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0
        assert out.decode().startswith(" one two three")


async def test_the_model_file(stack: Stack) -> None:
    await stack.corral("install", "tiny-count")
    (config,) = blocks("yaml")
    config = config.replace("my-model.Q4_K_M.gguf", "tiny-count.gguf")
    (stack.home / "models" / "mine.yaml").write_text(config)
    answer = await stack.corral("run", "my-model", "one two", "--raw", "--max-tokens", "1")
    assert answer == " three\n"


def test_every_command_of_the_tour_exists() -> None:
    import subprocess

    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = {line.split()[1] for line in lines if line.startswith("corral ")}
    assert {"up", "install", "run", "status", "logs", "models", "unload"} <= commands
    for command in commands:
        shown = subprocess.run(
            [installed("corral"), command, "--help"],
            capture_output=True,
            check=True,
        )
        assert shown.stdout
    targets = {line.split()[1] for line in lines if line.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in targets)
