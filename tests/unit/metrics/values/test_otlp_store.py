from __future__ import annotations

import pytest

from services.metrics.values.family import Family, Histogram, Kind, Value, labels_of, merged
from services.metrics.values.otlp_store import OtlpStore, Point
from services.metrics.values.prometheus_names import label_names, metric_name


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> OtlpStore:
    return OtlpStore(
        own={"own": Kind.HISTOGRAM, "self": Kind.COUNTER},
        own_bounds={"own": (1.0, 2.0)},
        max_series=4,
        max_label_length=32,
        stale_after=60.0,
        clock=clock,
    )


def point(
    value: Value = 1.0,
    name: str = "n",
    kind: Kind = Kind.COUNTER,
    *,
    source: str = "s",
    total: bool = True,
    start: int = 1,
    time: int = 10,
    **labels: str,
) -> Point:
    return Point(source, name, "", "", kind, labels, value, total, start, time)


def histogram(*counts: int, bounds: tuple[float, ...] = (1.0, 2.0)) -> Histogram:
    return Histogram(sum(counts), float(sum(counts)), bounds, counts)


def only(store: OtlpStore) -> Value:
    (family,) = store.families()
    (value,) = family.series.values()
    return value


def test_totals_of_one_sender_and_of_its_next_life(store: OtlpStore) -> None:
    for value, start, time in ((5.0, 1, 10), (7.0, 1, 20), (7.0, 1, 20), (3.0, 30, 40)):
        assert store.offer(point(value, start=start, time=time)) == ""
    assert only(store) == 10.0


def test_a_total_that_goes_down_was_restarted(store: OtlpStore) -> None:
    store.offer(point(5.0, start=0, time=1))
    store.offer(point(2.0, start=0, time=2))
    assert only(store) == 7.0


def test_an_old_point_changes_nothing(store: OtlpStore) -> None:
    store.offer(point(5.0, time=20))
    store.offer(point(4.0, time=10))
    assert only(store) == 5.0


def test_two_senders_add_up_even_if_they_call_themselves_the_same(store: OtlpStore) -> None:
    for value in (1.0, 2.0, 3.0):
        store.offer(point(value, start=1, time=int(value)))
        store.offer(point(10 * value, start=2, time=int(value)))
    assert only(store) == 33.0


def test_growth_is_added(store: OtlpStore) -> None:
    for time in (1, 2, 3):
        store.offer(point(2.0, total=False, time=time))
    assert only(store) == 6.0


def test_gauges_are_set_and_up_down_counters_go_both_ways(store: OtlpStore) -> None:
    store.offer(point(5.0, kind=Kind.GAUGE, time=2))
    store.offer(point(3.0, kind=Kind.GAUGE, time=3))
    store.offer(point(9.0, kind=Kind.GAUGE, time=1))
    assert only(store) == 3.0
    store.offer(point(-2.0, kind=Kind.GAUGE, total=False, time=4))
    assert only(store) == 1.0


def test_histograms(store: OtlpStore) -> None:
    store.offer(point(histogram(1, 0, 2), kind=Kind.HISTOGRAM, time=1))
    store.offer(point(histogram(3, 1, 2), kind=Kind.HISTOGRAM, time=2))
    store.offer(point(histogram(0, 1, 0), kind=Kind.HISTOGRAM, start=5, time=6))
    assert only(store) == histogram(3, 2, 2)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (point(name="own"), "is a histogram already"),
        (point(histogram(1, 2), name="self_total", kind=Kind.HISTOGRAM), "self_total"),
        (point(name="self_total", kind=Kind.GAUGE), "part of the metric self"),
        (point(name="own_count", kind=Kind.GAUGE), "part of the metric own"),
        (
            point(histogram(1, 2, bounds=(5.0,)), name="own", kind=Kind.HISTOGRAM),
            "other bounds",
        ),
        (point(histogram(1, bounds=(5.0,)), kind=Kind.HISTOGRAM), "do not fit"),
        (point(Histogram(9, 1.0, (5.0,), (1, 1)), kind=Kind.HISTOGRAM), "do not fit"),
        (point(histogram(1, 1, 1, bounds=(5.0, 1.0)), kind=Kind.HISTOGRAM), "ascend"),
        (point(-1.0), "cannot be"),
        (point(float("nan")), "cannot be"),
        (point(path="x" * 33), "too long"),
        (point(name="…"), "not a metric's name"),
    ],
)
def test_what_is_refused(store: OtlpStore, bad: Point, why: str) -> None:
    assert why in store.offer(bad)
    assert all(not family.series for family in store.families())


def test_changed_bounds_are_refused(store: OtlpStore) -> None:
    first = point(histogram(1, 2, bounds=(3.0,)), kind=Kind.HISTOGRAM, total=False)
    assert store.offer(first) == ""
    other = point(histogram(1, 2, bounds=(4.0,)), kind=Kind.HISTOGRAM, total=False)
    assert "other bounds" in store.offer(other)


def test_series_are_bounded(store: OtlpStore) -> None:
    for index in range(4):
        assert store.offer(point(x=str(index))) == ""
    assert "no room" in store.offer(point(x="4"))
    assert store.offer(point(2.0, x="3", time=11)) == ""


def test_silent_senders_make_room(store: OtlpStore, clock: Clock) -> None:
    for index in range(4):
        store.offer(point(source=str(index)))
    assert "no room" in store.offer(point(source="4"))
    clock.now = 30.0
    store.offer(point(2.0, source="0", time=11))
    clock.now = 61.0
    assert store.offer(point(source="4")) == ""
    assert only(store) == 6.0
    store.offer(point(3.0, source="0", time=12))
    assert only(store) == 7.0


def test_names() -> None:
    assert metric_name("http.server.duration", Kind.HISTOGRAM) == "http_server_duration"
    assert metric_name("requests_total", Kind.COUNTER) == "requests"
    assert metric_name("2xx", Kind.GAUGE) == "_2xx"
    assert label_names({"a.b": "1", "a_b": "2", "le": "3", "__x": "4", "5": "6"}) == {
        "a_b": "1;2",
        "exported_le": "3",
        "exported_x": "4",
        "_5": "6",
    }


def test_merging() -> None:
    key, other = labels_of({"a": "1"}), labels_of({"a": "2"})
    mine = [
        Family("h", "", "", Kind.HISTOGRAM, {key: histogram(1, 0, 0)}),
        Family("g", "", "", Kind.GAUGE, {key: 1.0}),
    ]
    sent = [
        Family("h", "", "", Kind.HISTOGRAM, {key: histogram(0, 1, 0), other: histogram(1, 1, 1)}),
        Family("g", "", "", Kind.GAUGE, {key: 5.0}),
        Family("c", "", "", Kind.COUNTER, {key: 2.0}),
    ]
    found = {family.name: family.series for family in merged(mine, sent)}
    assert found == {
        "h": {key: histogram(1, 1, 0), other: histogram(1, 1, 1)},
        "g": {key: 5.0},
        "c": {key: 2.0},
    }
