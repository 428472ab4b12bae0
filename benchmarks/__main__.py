"""Run the benchmarks: `python -m benchmarks [NAME ...]`. Each prints a table of ratios."""

from __future__ import annotations

import asyncio
import importlib
import sys

NAMES = ("gateway", "startup", "models", "death")


def main() -> int:
    """Run those that are named, or all."""
    chosen = sys.argv[1:] or list(NAMES)
    if unknown := set(chosen) - set(NAMES):
        print(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
        return 2
    for name in chosen:
        asyncio.run(importlib.import_module(f"benchmarks.{name}").run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
