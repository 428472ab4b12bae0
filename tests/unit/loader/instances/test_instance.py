"""An instance's state, and which code may change it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from services.common.errors import CorralError
from services.loader.backends.backend import Backend
from services.loader.instances.instance import Instance, Lease
from services.loader.models.entry import ModelEntry

LOADER = Path(__file__).parents[4] / "services" / "loader"
OWN = {LOADER / "instances" / "instance.py", LOADER / "instances" / "call_counts.py"}


def make() -> Instance:
    backend = Backend("b", revision="1")
    return Instance("uid", 1, "m", backend, ModelEntry("m", revision="1"), 100.0)


def writes(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Yield each `….instance.x = …`, `instance.calls.x += …` and the like."""
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Attribute) and _ends_with(target.value, "instance", "calls"):
                yield target


def _ends_with(value: ast.expr, *names: str) -> bool:
    found = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    return found in names


def test_only_an_instances_own_methods_change_it() -> None:
    found = [
        f"{path.relative_to(LOADER)}:{target.lineno}"
        for path in sorted(LOADER.rglob("*.py"))
        if path not in OWN
        for target in writes(ast.parse(path.read_text()))
    ]
    assert not found


async def test_the_first_error_stays_and_each_lease_is_cut() -> None:
    instance = make()
    cut: list[str] = []
    for name in ("first", "second"):
        Lease(instance, lambda _: None).on_cut(partial(cut.append, name))
    first, second = CorralError("crashed"), CorralError("unloaded")
    instance.end(first)
    assert instance.ended.result() is first and sorted(cut) == ["first", "second"]
    instance.end(second)
    assert await instance.wait_ended(1) is first
    Lease(instance, lambda _: None).on_cut(partial(cut.append, "late"))
    assert cut[-1] == "late"


async def test_a_time_without_an_end_has_no_error() -> None:
    assert await make().wait_ended(0.01) is None


async def test_an_adopted_instance_keeps_the_time_of_its_load() -> None:
    instance = make()
    instance.mark_adopted(107.0, "loaded")
    assert (instance.ready, instance.load_seconds, instance.load_message) == (107.0, 7.0, "loaded")
    assert instance.adopted and instance.ready_since == instance.calls.idle_since > 0


async def test_a_loaded_instance_has_been_idle_since_it_was_loaded() -> None:
    instance = make()
    instance.mark_ready("loaded")
    assert instance.ready and 0 <= instance.load_seconds < 60
    assert instance.ready_since == instance.calls.idle_since > 0


async def test_what_changed_makes_it_leave_and_what_changed_back_lets_it_stay() -> None:
    instance = make()
    assert not instance.leaving
    instance.compare_entry("2")
    assert instance.outdated and instance.leaving
    instance.compare_entry("1")
    assert not instance.leaving
    instance.compare_backend("2")
    assert instance.superseded and instance.leaving
