from __future__ import annotations

from services.metrics.values.label_bound import OTHER, LabelBound


def test_known_sets_pass_and_new_values_are_folded() -> None:
    bound = LabelBound(("method", "path"), max_values=3, max_series=100)
    for index in range(3):
        assert bound.admit(("GET", f"/{index}")) == ("GET", f"/{index}")
    assert bound.admit(("GET", "/3")) == ("GET", OTHER)
    assert bound.admit(("GET", "/1")) == ("GET", "/1")
    assert bound.admit(("PUT", "/4")) == ("PUT", OTHER)


def test_the_number_of_sets_is_bounded_whatever_the_values() -> None:
    bound = LabelBound(("a", "b"), max_values=50, max_series=60)
    seen = {bound.admit((str(a), str(b))) for a in range(100) for b in range(100)}
    assert len(seen) == 61
    assert (OTHER, OTHER) in seen
    assert len(bound) == 60


def test_a_caller_may_say_other_itself() -> None:
    bound = LabelBound(("a",), max_values=1, max_series=10)
    assert bound.admit((OTHER,)) == (OTHER,)
    assert bound.admit(("x",)) == ("x",)
    assert bound.admit(("y",)) == (OTHER,)
