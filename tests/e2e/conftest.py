from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.tools.processes import alive
from tests.tools.service import ROOT, environment, installed
from tests.tools.tiny_gguf import write_tiny
from tests.tools.waiting import eventually

UP_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0
COMMAND_TIMEOUT = 120.0


@dataclass
class Stack:
    """A running `corral up`."""

    home: Path
    process: asyncio.subprocess.Process
    addresses: dict[str, str]
    environment: dict[str, str]

    async def corral(self, *arguments: str, ok: bool = True) -> str:
        """Run a command against this stack; return its stdout."""
        process = await asyncio.create_subprocess_exec(
            installed("corral"),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
        )
        out, err = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT)
        assert (process.returncode == 0) == ok, f"{arguments}: {out.decode()}\n{err.decode()}"
        return out.decode() if ok else err.decode()

    def family(self) -> list[int]:
        """Return the pids of all processes of the stack."""
        up = psutil.Process(self.process.pid)
        return [up.pid, *(child.pid for child in up.children(recursive=True))]


def write_gallery(folder: Path, models: dict[str, dict[str, Any]]) -> Path:
    """Write a gallery in LocalAI's format whose models are tiny GGUFs, generated here."""
    entries: list[dict[str, Any]] = []
    for name, settings in models.items():
        file = folder / f"{name}.gguf"
        write_tiny(str(settings.pop("kind")), file)
        parameters = {"model": file.name}
        entries.append(
            {
                "name": name,
                "url": "",
                "tags": ["tiny"],
                "config_file": {"backend": "llama-cpp", "parameters": parameters} | settings,
                "files": [
                    {
                        "filename": file.name,
                        "sha256": sha256(file.read_bytes()).hexdigest(),
                        "uri": file.as_uri(),
                    }
                ],
            }
        )
    index = folder / "index.yaml"
    index.write_text(yaml.safe_dump(entries))
    return index


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """The four services, started with `corral up`, and a gallery of tiny models."""
    home = tmp_path / "home"
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    index = write_gallery(
        gallery,
        {
            "tiny-count": {"kind": "count", "known_usecases": ["completion"]},
            "tiny-babble": {"kind": "random", "options": ["parallel:2"]},
            "tiny-embed": {"kind": "embed", "known_usecases": ["embeddings"]},
        },
    )
    env = environment(
        CORRAL_HOME=str(home),
        NO_COLOR="1",
        CORRAL_GALLERY_GALLERIES=json.dumps([{"name": "tiny", "url": index.as_uri()}]),
    )
    log = (tmp_path / "up.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        *(
            installed("corral"),
            "up",
            "--listen",
            "127.0.0.1:0",
            "--metrics-http-listen",
            "127.0.0.1:0",
        ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=env,
    )
    endpoints = home / "run" / "endpoints.json"
    try:
        await eventually(endpoints.exists, timeout=UP_TIMEOUT, what="`corral up`")
        addresses = json.loads(endpoints.read_text())["addresses"]
        running = Stack(home, process, addresses, env)
        yield running
        family = running.family()
    except BaseException:
        sys.stderr.write((tmp_path / "up.log").read_text())
        raise
    finally:
        log.close()
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
    await eventually(
        lambda: not any(map(alive, family)), timeout=5, what="the end of all processes"
    )


@pytest.fixture(scope="session")
def plain_stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Code generated from backend.proto and nothing else, as a stranger would make it."""
    folder = tmp_path_factory.mktemp("stubs")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *(f"-I{ROOT}/protos/corral/backend", f"--python_out={folder}"),
            *(f"--grpc_python_out={folder}", "backend.proto"),
        ],
        check=True,
    )
    yield folder
