from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reloads import overlapped
from benchmarks.soak.clients import Trouble, Way
from benchmarks.soak.cuts import AFTERMATH, Cut, Cuts
from benchmarks.soak.samples import slope

WAY = Way("gateway m", "m", "127.0.0.1:1")
LOADER: Any = None


def told(at: float, end: float, code: str = "UNAVAILABLE", reason: str = "BACKEND_CRASHED") -> Any:
    return Trouble(WAY, "unary", at, end, code, reason, "")


@settings(deadline=None)
@given(st.floats(-1e3, 1e3), st.integers(6, 30), st.floats(-1e6, 1e6))
def test_slope_is_that_of_the_many(rise: float, count: int, outlier: float) -> None:
    points = [(float(x), rise * x) for x in range(count)]
    points[count // 2] = (count / 2, outlier)
    estimate, least = slope(points)
    assert estimate == pytest.approx(rise, rel=0.01, abs=1e-6)
    assert least <= estimate


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 40.0]), min_size=10, max_size=40))
def test_what_only_varies_does_not_surely_rise(values: list[float]) -> None:
    assert slope([(float(x), value) for x, value in enumerate(values)])[1] <= 0


def test_what_rises_and_varies_surely_rises() -> None:
    chance = Random(1)
    points = [(float(x), x + chance.uniform(0, 20)) for x in range(60)]
    assert slope(points)[1] > 0.8


def test_no_slope_without_points() -> None:
    assert slope([]) == slope([(1.0, 2.0)]) == (0.0, 0.0)


def test_a_call_is_told_of_the_crash_that_it_met() -> None:
    cuts = Cuts(LOADER, ("m", "n"), [Cut("crash", "m", 10.0, 10.0)])
    assert cuts.explain(told(9.0, 10.1)) == "crash"
    assert cuts.explain(told(10.5, 10.6)) == "crash"


def test_all_else_is_unexplained() -> None:
    cuts = Cuts(LOADER, ("m", "n"), [Cut("crash", "m", 10, 10), Cut("unload", "m", 20, 21)])
    assert not cuts.explain(told(8.0, 9.0))
    assert not cuts.explain(told(10.1 + AFTERMATH, 10.2 + AFTERMATH))
    assert not cuts.explain(told(9.0, 10.1, code="INTERNAL"))
    assert not cuts.explain(told(9.0, 10.1, reason="MODEL_UNLOADED"))
    assert not cuts.explain(told(20.0, 20.5, reason="MODEL_UNLOADED"))


def test_another_models_crash_explains_nothing() -> None:
    cuts = Cuts(LOADER, ("m", "n"), [Cut("crash", "n", 10.0, 10.0)])
    assert not cuts.explain(told(9.0, 10.1))


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 100), min_size=2, max_size=20, unique=True).map(sorted),
    st.floats(0, 100),
    st.floats(0, 100),
)
def test_met_is_any_overlap(edges: list[float], a: float, b: float) -> None:
    gaps = list(zip(edges[::2], edges[1::2], strict=False))
    began, ended = min(a, b), max(a, b)
    assert overlapped(gaps)(began, ended) == any(x <= ended and began <= y for x, y in gaps)
