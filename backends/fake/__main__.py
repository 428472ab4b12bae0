"""Starts the backend: `corral backend fake`, `python -m backends.fake`, or this file from anywhere."""

import importlib.util
import os
import sys
from pathlib import Path

# The parent process, read before slow imports: it may die meanwhile.
PARENT = os.getppid()
_PACKAGE = "corral_fake"


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
    """Run the backend; returns the exit code."""
    program = importlib.import_module(f"{__package__ or _adopt()}.program")
    code: int = program.main(sys.argv[1:], PARENT)
    return code


if __name__ == "__main__":
    sys.exit(main())
