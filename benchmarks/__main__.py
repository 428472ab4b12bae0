"""Run the benchmarks: `python -m benchmarks [--full] [--peers] [NAME ...]`.

Prints figures with their goals, and writes all of them to benchmarks/results/<date>.json;
`python -m benchmarks report FILE [DOCUMENT]` prints such a file as Markdown, or inserts it into a document.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from . import report
from .figures import machine
from .record import RECORD, RESULTS, facts, read

SHORT = ("unary", "streams", "memory", "idle", "loading", "cold", "conversation")
"""The benchmarks of a short run, unless others are named."""
FULL = (*SHORT, "sdk", "loops", "coalescing", "startup", "models", "neighbours", "reloads")
LONG = ("death", "cycles", "eviction", "soak")
"""Benchmarks of the loader, not of its data plane; they run only when named."""
NAMES = (*FULL, *LONG, "peers")


def main() -> int:
    """Run the benchmarks that are named, or the default ones; return the exit code."""
    if sys.argv[1:2] == ["report"]:
        return _report(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--full", action="store_true", help="all but those that must be named, and longer"
    )
    parser.add_argument("--peers", action="store_true", help="other servers of models too")
    parser.add_argument("--minutes", type=float, metavar="N", help="how long the soak takes (10)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(
            f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}"
        )
    names = given.names or list(FULL if given.full else SHORT)
    if given.peers and "peers" not in names:
        names.append("peers")
    out = given.out or RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}.json"
    RECORD.full = given.full
    began = time.monotonic()
    print(f"on {machine()}")
    for place, name in enumerate(names):
        print(f"\n[{place + 1}/{len(names)}] {name}", flush=True)
        more = {"minutes": given.minutes} if name == "soak" and given.minutes else {}
        _run(name, full=given.full, **more)
        RECORD.facts = facts(time.monotonic() - began)
        RECORD.write(out)  # after each benchmark, so that an interrupted run keeps its results
    print(f"\n{report.goals(RECORD)}\n")
    for failure in RECORD.failures:
        print(f"FAILED {failure['where']}: {failure['why']}")
    print(f"written to {out}; {RECORD.facts['seconds']} s")
    return bool(RECORD.failures)


def _run(name: str, *, full: bool, **more: float) -> None:
    """Run one benchmark; its failure does not stop the others."""
    RECORD.benchmark = name
    try:
        asyncio.run(
            importlib.import_module(f"benchmarks.{_MODULES.get(name, name)}").run(full=full, **more)
        )
    except Exception as error:  # noqa: BLE001 - the other benchmarks run whatever it is
        traceback.print_exc()
        RECORD.failed(name, error)


_MODULES = {"peers": "beside_peers"}
"""The modules of the benchmarks whose module has another name."""


def _report(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks report")
    parser.add_argument("file", type=Path, help="a run's JSON")
    parser.add_argument(
        "document",
        type=Path,
        nargs="?",
        help="a document with marks for it; plot and JSON go beside it",
    )
    given = parser.parse_args(words)
    if given.document:
        report.write(given.file, given.document)
    else:
        print(report.markdown(read(given.file)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
