"""Starts the backend: `python -m backends.llama_cpp --addr ADDRESS`, or run.sh from anywhere."""

import importlib.util
import os
import sys
from pathlib import Path

# The parent process, read before slow imports: it may die meanwhile.
PARENT = os.getppid()
EXIT_INCOMPLETE = 3
_PACKAGE = "corral_llama_cpp"
_NEEDED = {
    "grpc": "grpcio",
    "google.protobuf": "protobuf",
    "corral.backend": "corral",
    "xllamacpp": "xllamacpp",
}

# As in run.sh, which is not the only way to start; read when the engine is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GGML_NO_BACKTRACE", "1")


def _missing() -> list[str]:
    """Return the distributions that are not installed, without importing the engine."""
    missing = []
    for module, distribution in _NEEDED.items():
        try:
            found = importlib.util.find_spec(module) is not None
        except ImportError:
            found = False
        if not found:
            missing.append(distribution)
    return missing


def _adopt() -> str:
    """Make the folder this file is in a package, whatever its name is; return the name used."""
    folder = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)
    return _PACKAGE


def main() -> int:
    """Check what is needed, then run the backend."""
    if missing := _missing():
        sys.stderr.write(
            f"llama-cpp: not installed for {sys.executable}: {', '.join(missing)}; "
            "run: pip install 'corral[llama-cpp]'\n"
        )
        return EXIT_INCOMPLETE
    program = importlib.import_module(f"{__package__ or _adopt()}.program")
    code: int = program.main(sys.argv[1:], PARENT)
    return code


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: it would wait for a thread inside the engine.
    os._exit(status)
