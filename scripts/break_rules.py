"""Show that each invariant has a test that fails when it is broken: `make prove`, or `--only 3`.

Each break of scripts/breaks is applied to a copy of the tree, and its test must fail there. Before
that, all the tests must pass without any break.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from scripts.breaks import BREAKS, Break

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("services", "backends", "protos", "sdk", "scripts", "tests", "pyproject.toml")
TIMEOUT = 300.0
"""Seconds for one test; a test that hangs has caught the break too, but should fail sooner."""

PASSED, FAILED = 0, 1  # pytest's; others mean that it could not run the test


def main() -> int:
    """Try the breaks; return 1 if one is not caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, metavar="N", help="the breaks of one invariant")
    only = parser.parse_args().only
    breaks = [each for each in BREAKS if only in (None, each.invariant)]
    if not breaks:
        parser.error(f"there are no breaks of invariant {only}")
    with tempfile.TemporaryDirectory(prefix="corral-prove-") as folder:
        tree = copied(Path(folder))
        return prove(tree, breaks)


def copied(folder: Path) -> Path:
    """Copy the tree; return the copy's path."""
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for part in PARTS:
        source, target = ROOT / part, folder / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignore)
        else:
            shutil.copy(source, target)
    return folder


def prove(tree: Path, breaks: Sequence[Break]) -> int:
    """Try each break in the tree, and restore the tree afterwards."""
    code, output = run(tree, dict.fromkeys(each.test for each in breaks))
    if code != PASSED:
        print(output)
        print("the tests fail without any break: mend that first")
        return 1
    missed = 0
    for each in breaks:
        began = time.monotonic()
        caught, output = try_break(tree, each)
        missed += not caught
        verdict = "caught" if caught else "NOT CAUGHT"
        seconds = time.monotonic() - began
        print(f"{each.invariant:2}  {verdict:10} {seconds:5.1f} s  {each.what}", flush=True)
        if not caught:
            print(f"    by {each.test}\n{output}")
    print(f"{len(breaks) - missed} of {len(breaks)} caught")
    return 1 if missed else 0


def try_break(tree: Path, each: Break) -> tuple[bool, str]:
    """Apply a break, run its test, and revert; return whether the test failed, and its output."""
    file = tree / each.file
    whole = file.read_text()
    if whole.count(each.old) != 1:
        return False, f"    {each.file} does not have this text once:\n{each.old}"
    broken = whole.replace(each.old, each.new)
    # A break must not be a syntax error, which any test would catch.
    compile(broken, each.file, "exec")
    file.write_text(broken)
    try:
        code, output = run(tree, [each.test])
    finally:
        file.write_text(whole)
    return code == FAILED, output


def run(tree: Path, tests: Collection[str]) -> tuple[int, str]:
    """Run tests in the tree; return pytest's exit code and output."""
    path = os.pathsep.join([str(tree), str(tree / "sdk" / "python")])
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            # No bytecode: two versions of a file may have the same size and second.
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT * len(tests),
            check=False,
        )
    except subprocess.TimeoutExpired as hung:
        return FAILED, str(hung)
    return done.returncode, done.stdout


if __name__ == "__main__":
    sys.exit(main())
