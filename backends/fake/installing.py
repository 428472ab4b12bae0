"""Writing the folder in which a loader finds the backend."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from . import VERSION
from .behaviour import FILE, Behaviour, with_settings

_RUN = """#!/bin/sh
# Starts the fake backend; behaviour.json in this folder sets its behaviour.
set -eu
cd "$(dirname -- "$0")"
python=${{CORRAL_PYTHON:-{python}}}
{start}"$python" -P {program} "$@"
"""


class InstallError(Exception):
    """The folder cannot be written."""


def install(folder: Path, name: str, values: Mapping[str, object], *, exec_: bool) -> Path:
    """Write the backend `name` below `folder` and return its own folder.

    Raises InstallError, and BehaviourError for unknown settings.
    """
    behaviour = with_settings(Behaviour(), values)
    if not name or "/" in name or name.startswith("."):
        raise InstallError(f"--name {name!r} is not a name for a folder")
    own = folder.expanduser().absolute() / name
    try:
        own.mkdir(parents=True)
        run = own / "run.sh"
        run.write_text(
            _RUN.format(
                python=shlex.quote(sys.executable),
                program=shlex.quote(str(Path(__file__).resolve().parent / "__main__.py")),
                start="exec " if exec_ else "",
            )
        )
        run.chmod(0o755)
        _write(
            own / "metadata.json",
            {
                "name": name,
                "version": VERSION,
                "corral": {
                    "addresses": ["unix", "tcp"] if behaviour.unix else ["tcp"],
                    "announces": behaviour.announce,
                },
            },
        )
        # The parsed values are easier to edit than the text from the command line.
        _write(own / FILE, {key: getattr(behaviour, key) for key in values})
    except FileExistsError:
        raise InstallError(f"{own} exists; edit its {FILE}, or remove it first") from None
    except OSError as error:
        raise InstallError(f"cannot write {own}: {error.strerror}") from None
    return own


def _write(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
