"""The README's line for each language generates code; Go's compiles and streams from the gateway.

A language whose tools are not on the machine is skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Stack
from tests.tools.service import ROOT

README = (ROOT / "README.md").read_text()
GO_CLIENT = Path(__file__).with_name("go_client")
SECONDS = 240.0
"""The longest that generating or building may take."""


def block() -> str:
    """Return the README's lines for protoc."""
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return next(text for text in blocks if "protos=" in text)


def line_of(language: str) -> str:
    """Return the preparation and the line below the comment that names the language."""
    preparation, *rest = block().splitlines()
    at = next(number for number, line in enumerate(rest) if line.startswith(f"# {language}:"))
    return f"{preparation}\n{rest[at + 1]}"


def in_checkout(folder: Path, command: str, *tools: Path) -> subprocess.CompletedProcess[str]:
    """Run a command where `protos` is the checkout's, with further folders on the path."""
    if not (folder / "protos").exists():
        (folder / "protos").symlink_to(ROOT / "protos")
    path = os.pathsep.join([*map(str, tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def run(folder: Path, command: str, *tools: Path) -> str:
    done = in_checkout(folder, command, *tools)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def protoc(tmp_path: Path) -> Iterator[Path]:
    """Give a folder with a protoc: grpcio-tools', for plugins that are programs of their own."""
    folder = tmp_path / "tools"
    folder.mkdir()
    program = folder / "protoc"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m grpc_tools.protoc "$@"\n')
    program.chmod(0o755)
    yield folder


def test_every_language_has_its_line() -> None:
    languages = re.findall(r"^# ([\w+#]+):", block(), re.MULTILINE)
    assert languages == ["Go", "TypeScript", "Java", "C++", "C#", "Rust", "Python"]


@pytest.mark.parametrize(
    ("language", "needed", "made"),
    [
        ("TypeScript", "node_modules/.bin/protoc-gen-ts_proto", "corral/loader/v1/loader.ts"),
        ("Java", "protoc-gen-grpc-java", "corral/loader/v1/LoaderServiceGrpc.java"),
        ("C++", "grpc_cpp_plugin", "corral/loader/v1/loader.grpc.pb.cc"),
        ("C#", "grpc_csharp_plugin", "Corral/Loader/V1/LoaderGrpc.cs"),
        ("Rust", "protoc-gen-prost", "corral.loader.v1.rs"),
        ("Python", "python", "corral/loader/v1/loader_pb2_grpc.py"),
    ],
)
def test_the_line_generates(language: str, needed: str, made: str, tmp_path: Path) -> None:
    if language != "Python" and not (shutil.which(needed) and shutil.which("protoc")):
        pytest.skip(f"{language} needs {needed} and protoc")
    run(tmp_path, line_of(language))
    assert (tmp_path / "gen" / made).is_file()


@pytest.mark.parametrize(
    ("flag", "made"),
    [
        ("--java_out=gen", "corral/loader/v1/LoaderProto.java"),
        ("--cpp_out=gen", "corral/loader/v1/loader.pb.cc"),
    ],
)
def test_the_messages_generate_without_a_plugin(flag: str, made: str, tmp_path: Path) -> None:
    if not shutil.which("protoc"):
        pytest.skip("needs a protoc of the system")
    run(tmp_path, f"{block().splitlines()[0]}\nprotoc $protos {flag}")
    assert (tmp_path / "gen" / made).is_file()


@pytest.mark.timeout(2 * SECONDS)
async def test_a_go_client_compiles_and_streams(stack: Stack, tmp_path: Path, protoc: Path) -> None:
    if not shutil.which("go"):
        pytest.skip("needs go")
    install = re.search(r"^# Go: (.*)$", block(), re.MULTILINE)
    assert install is not None
    run(tmp_path, f"export GOBIN={protoc}\n{install[1]}", protoc)
    run(tmp_path, line_of("Go"), protoc)
    shutil.copytree(GO_CLIENT, tmp_path / "gen", dirs_exist_ok=True)
    run(tmp_path, "cd gen && go build -o client .")
    await stack.corral("install", "tiny-count")
    said = run(tmp_path, f"gen/client {stack.addresses['loader']} tiny-count 'one two three'")
    assert said == " four five six"
