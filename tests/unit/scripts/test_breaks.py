"""The list of broken rules does not rot: its texts are there, its tests exist, no invariant is left out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts.breaks import BREAKS, Break

ROOT = Path(__file__).resolve().parents[3]


def test_every_invariant_is_broken() -> None:
    assert {each.invariant for each in BREAKS} == set(range(1, 13))


@pytest.mark.parametrize("each", BREAKS, ids=lambda each: f"{each.invariant}: {each.what}")
def test_the_break_can_be_made_and_its_test_is_there(each: Break) -> None:
    text = (ROOT / each.file).read_text()
    assert text.count(each.old) == 1
    compile(text.replace(each.old, each.new), each.file, "exec")
    file, _, name = each.test.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in functions
