"""The backend of `corral backend fake`, as the tests start it.

Under the loader it runs in the folder of its run.sh and reads its behaviour from `behaviour.json`
there.
"""

from __future__ import annotations

import runpy
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "backends" / "fake"
BEHAVIOUR = "behaviour.json"

FOREIGN = {
    "announce": False,
    "parent_watch": False,
    "echo": "request",
    "notes": "notes.txt",
    "tokens": 1_000_000,
    "token_seconds": 0.01,
}
"""A program that knows nothing of Corral and echoes the request it receives."""

if __name__ == "__main__":
    runpy.run_path(str(PROGRAM / "__main__.py"), run_name="__main__")
