"""Generate what is made from protos/corral: `go_package` in each .proto, the Python stubs in sdk/python/corral.

`go_package` is the Go module of protos/go_module.txt followed by the file's folder, so that the module is set in one
place and protoc-gen-go's output compiles as it is.
All Python packages but the handwritten ones are replaced, so that a deleted .proto leaves nothing behind. With
--check nothing is written: the script compares and exits with 1 when something committed is stale.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
SDK = ROOT / "sdk" / "python" / "corral"
HANDWRITTEN = ("client",)
GO_PACKAGE = re.compile(r'^option go_package = "[^"]*";$', re.MULTILINE)


def include_paths() -> list[str]:
    """Return protoc's include path: our protos, Google's common ones, the well-known types."""
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    return [str(PROTOS), str(PROTOS / "third_party"), str(well_known)]


def go_package(module: str, proto: Path) -> str:
    """Return the line that a .proto must have, given its path below protos/corral."""
    folder = proto.parent
    return f'option go_package = "{module}/{folder.as_posix()};{"".join(folder.parts)}";'


def set_go_packages(*, write: bool) -> list[str]:
    """Return the .proto files whose go_package is not that of the Go module; correct them if `write`."""
    module = (PROTOS / "go_module.txt").read_text().strip()
    stale = []
    for path in sorted((PROTOS / "corral").rglob("*.proto")):
        text = path.read_text()
        line = go_package(module, path.relative_to(PROTOS / "corral"))
        if (correct := GO_PACKAGE.sub(line, text)) != text:
            stale.append(str(path.relative_to(ROOT)))
            if write:
                path.write_text(correct)
    return stale


def generate(target: Path) -> None:
    """Write all stubs below `target`. Raises SystemExit when protoc refuses a file."""
    # protoc finds protoc-gen-mypy on PATH; it is installed next to the running interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sources = sorted((PROTOS / "corral").rglob("*.proto"))
    arguments = [
        "protoc",
        *(f"-I{path}" for path in include_paths()),
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet,async_only:{target}",
        *(str(path) for path in sources),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its messages are above")
    for stub in target.rglob("*_pb2_grpc.py"):
        if "class " not in stub.read_text():  # a .proto without a service
            stub.unlink()
            stub.with_suffix(".pyi").unlink(missing_ok=True)
    for folder in sorted(path for path in (target / "corral").rglob("*") if path.is_dir()):
        name = ".".join(folder.relative_to(target).parts)
        (folder / "__init__.py").write_text(f'"""The messages and stubs of {name}, generated."""\n')


def generated_packages(corral: Path) -> list[Path]:
    """Return the folders of generated code, sorted."""
    skipped = (*HANDWRITTEN, "__pycache__")
    return sorted(path for path in corral.iterdir() if path.is_dir() and path.name not in skipped)


def differences(left: Path, right: Path) -> list[str]:
    """Return the relative paths of generated files that differ between two trees, sorted."""

    def files(base: Path) -> set[Path]:
        return {
            path.relative_to(base)
            for package in generated_packages(base)
            for path in package.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    one, other = files(left), files(right)
    changed = {
        path for path in one & other if not filecmp.cmp(left / path, right / path, shallow=False)
    }
    return sorted(str(path) for path in (one ^ other) | changed)


def main() -> int:
    """Run the generator; return the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when something is stale")
    check = parser.parse_args().check
    stale = set_go_packages(write=not check)
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / "corral"
        if check:
            stale += differences(fresh, SDK)
            if stale:
                print("stale, run `make gen`:", *stale, sep="\n  ", file=sys.stderr)
            return 1 if stale else 0
        for package in generated_packages(SDK):
            shutil.rmtree(package)
        shutil.copytree(fresh, SDK, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
