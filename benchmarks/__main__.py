"""Run the benchmarks: `python -m benchmarks [--full] [NAME ...]`. Each prints a table of ratios."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys

from .figures import machine

NAMES = (
    "gateway",
    "startup",
    "models",
    "cold",
    "neighbours",
    "cycles",
    "death",
    "eviction",
)


def main() -> int:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--full", action="store_true", help="as long as the goals say, not short")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(
            f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}"
        )
    print(f"on {machine()}")
    for name in given.names or NAMES:
        asyncio.run(importlib.import_module(f"benchmarks.{name}").run(full=given.full))
    return 0


if __name__ == "__main__":
    sys.exit(main())
