"""Fail when the suite and the SDK that it depends on do not have the same version."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def problem(suite: str, sdk: str) -> str:
    """Return what differs between two pyproject.toml, given as text; empty if nothing does."""
    project = tomllib.loads(suite)["project"]
    version = tomllib.loads(sdk)["project"]["version"]
    if project["version"] != version:
        return f"corral is {project['version']} and corral-sdk is {version}: make them equal"
    wanted = f"corral-sdk=={version}"
    if wanted not in project["dependencies"]:
        return f"pyproject.toml must depend on {wanted}"
    return ""


def main() -> int:
    """Print the problem; return the process's exit code."""
    files = (ROOT / "pyproject.toml", ROOT / "sdk" / "python" / "pyproject.toml")
    if found := problem(*(file.read_text(encoding="utf-8") for file in files)):
        print(found, file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
