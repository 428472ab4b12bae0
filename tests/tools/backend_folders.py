"""Folders of installed backends for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from services.loader.backends.catalog import BackendCatalog
from services.loader.backends.folders import BackendFolder


def add(folder: Path, name: str, metadata: Any = None, *, program: bool = True) -> Path:
    """Install a backend that does nothing; without a run.sh if `program` is false."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    if program:
        run = folder / name / "run.sh"
        run.write_text("#!/bin/sh\n")
        run.chmod(0o755)
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        (folder / name / "metadata.json").write_text(text)
    return folder / name


def catalog(*folders: Path, capability: str = "default") -> BackendCatalog:
    return BackendCatalog([BackendFolder(folder) for folder in folders], capability)
