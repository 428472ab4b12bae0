"""Progress: never back, rate over the last seconds, time left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.gallery.operations.progress import Phase, Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_bytes_over_all_files() -> None:
    progress = Progress()
    there, fetched = progress.add("there"), progress.add("fetched")
    assert (progress.total, progress.percent) == (0, 0.0)
    there.resize(100)
    there.finish()
    assert progress.total == 0
    fetched.resize(300)
    fetched.arrived(100)
    assert (progress.done, progress.total, progress.percent) == (200, 400, 50.0)
    assert progress.fetched == 100


def test_percent_goes_on_where_a_crash_left_it() -> None:
    progress = Progress(percent=40.0)
    file = progress.add("f", 100)
    file.arrived(10)
    assert progress.percent == 40.0
    file.arrived(50)
    assert progress.percent == 60.0
    file.at(0)
    assert progress.percent == 60.0


def test_rate_and_time_left() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    progress.enter(Phase.DOWNLOADING)
    file = progress.add("f", 1000)
    assert progress.eta is None
    for _ in range(10):
        file.arrived(10)
        clock.now += 0.5
    assert 15 < progress.rate < 25
    assert progress.eta is not None
    assert 36 < progress.eta < 60
    clock.now += 60
    assert progress.rate < 1
    progress.enter(Phase.VERIFYING)
    assert progress.rate == 0
    assert progress.eta is None


def test_an_empty_file_counts_too() -> None:
    progress = Progress()
    progress.add("empty").finish()
    assert progress.percent == 100.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["resize", "at", "arrived", "finish"]),
            st.integers(0, 2),
            st.integers(0, 500),
        )
    )
)
def test_percent_never_falls(steps: list[tuple[str, int, int]]) -> None:
    progress = Progress()
    files = [progress.add(str(n)) for n in range(3)]
    last = 0.0
    for action, which, count in steps:
        if action == "finish":
            files[which].finish()
        else:
            getattr(files[which], action)(count)
        assert last <= progress.percent <= 100.0
        last = progress.percent
    progress.end(Phase.DONE)
    assert progress.percent == 100.0
