"""What counts as a call between modules, and the figures of a walk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from scripts import walk
from scripts.call_recorder import Call, Figures, Function, function, is_fresh
from services.common import names

LOADER = Function("services.loader.loader", "Loader.acquire")
LEASES = Function("services.loader.admission.leases", "ModelLeases.take")
WAITERS = Function("services.loader.admission.waiters", "LeaseWaiters.join")


def test_the_package_is_the_first_folder_below_the_service() -> None:
    assert LEASES.package == WAITERS.package == "services.loader.admission"
    assert LOADER.package == "services.loader.loader"


def test_figures_of_a_walk() -> None:
    calls = [
        Call(None, LOADER),
        Call(LOADER, LOADER),
        Call(LOADER, LEASES),
        Call(LEASES, WAITERS),
        Call(WAITERS, LEASES),
        Call(LEASES, WAITERS),
    ]
    assert Figures.of(calls) == Figures(
        calls=6,
        files=3,
        changes_of_file=4,
        arrows=3,
        both_ways=1,
        packages=2,
        changes_of_package=1,
    )


def test_only_a_beginning_is_a_fresh_call() -> None:
    seen: list[tuple[str, bool]] = []

    def numbers() -> Iterator[int]:
        yield 1
        yield 2

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename == __file__:
            seen.append((frame.f_code.co_name, is_fresh(frame.f_code, frame.f_lasti)))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        list(numbers())
        sum(number for number in (1,))
    finally:
        sys.setprofile(before)
    assert [fresh for name, fresh in seen if name == "numbers"] == [True, False, False]
    assert not any(fresh for name, fresh in seen if name == "<genexpr>")


def test_functions_are_those_of_the_services() -> None:
    assert function(names.resource_name.__code__) == Function(
        "services.common.names", "resource_name"
    )
    assert function(test_figures_of_a_walk.__code__) is None


@pytest.mark.parametrize("counted", [walk.OPTIONS, walk.OCCUPANCY, walk.END], ids=str)
def test_the_counted_functions_exist(counted: tuple[str, str]) -> None:
    assert walk.times([], counted) == 0


def test_a_counted_function_that_is_gone_is_named() -> None:
    with pytest.raises(SystemExit, match=r"services\.common\.names\.gone does not exist"):
        walk.times([], ("services.common.names", "gone"))
