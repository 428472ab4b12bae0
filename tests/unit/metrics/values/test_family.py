import pytest

from services.metrics.values.family import (
    Family,
    Histogram,
    Kind,
    labels_of,
    merged,
    select,
    together,
)

A, B = labels_of({"x": "a"}), labels_of({"x": "b", "a": "1"})


def family(name: str, kind: Kind = Kind.COUNTER, **values: float) -> Family:
    series = {labels_of({"x": label}): value for label, value in values.items()}
    return Family(name, "", "", kind, dict(series))


def test_labels_are_sorted() -> None:
    assert B == (("a", "1"), ("x", "b"))
    assert labels_of([("x", "b"), ("a", "1")]) == B


def test_the_same_series_of_several_groups_add_up() -> None:
    (total,) = merged([family("n", a=1, b=2)], [family("n", a=5)])
    assert total.series == {labels_of({"x": "a"}): 6, labels_of({"x": "b"}): 2}
    (gauge,) = merged([family("n", Kind.GAUGE, a=1)], [family("n", Kind.GAUGE, a=5)])
    assert gauge.series == {A: 5}


def test_histograms_add_up_and_do_not_mix_with_numbers() -> None:
    one = Histogram(3, 1.5, (1.0,), (2, 1))
    assert together(one, one) == Histogram(6, 3.0, (1.0,), (4, 2))
    with pytest.raises(TypeError):
        together(one, 1.0)


def test_families_are_selected_by_name_and_label() -> None:
    families = [family("b_calls", a=1, b=2), family("a", Kind.GAUGE, b=3)]
    assert [f.name for f in select(families)] == ["a", "b_calls"]
    assert [f.name for f in select(families, ["b_calls_total"])] == ["b_calls"]
    assert [f.name for f in select(families, ["a_total"])] == []
    (only,) = select(families, labels=A)
    assert (only.name, only.series) == ("b_calls", {A: 1})
    (empty,) = select(families, ["a"], A)
    assert (empty.name, empty.series) == ("a", {})
