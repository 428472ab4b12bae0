import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.backoff import Backoff


@given(
    initial=st.floats(0, 100),
    factor=st.floats(1, 10),
    maximum=st.floats(100, 1000),
    jitter=st.floats(0, 1),
    attempt=st.integers(1, 10**6),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_backoff_stays_in_its_bounds(
    initial: float, factor: float, maximum: float, jitter: float, attempt: int, draw: float
) -> None:
    backoff = Backoff(initial, factor, maximum, jitter)
    delay = backoff.delay(attempt, draw=lambda: draw)
    assert 0 <= delay <= maximum
    full = Backoff(initial, factor, maximum)
    assert delay <= full.delay(attempt) <= full.delay(attempt + 1)
    assert delay >= full.delay(attempt) * (1 - jitter) - 1e-9


def test_the_loaders_backoff() -> None:
    backoff = Backoff(10, 2, 300)
    assert [backoff.delay(n) for n in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]


@pytest.mark.parametrize(
    "numbers", [(-1, 2, 60, 0), (10, 2, 5, 0), (1, 0.5, 60, 0), (1, 2, 60, 1.5), (1, 2, 60, -0.1)]
)
def test_a_backoff_that_makes_no_sense(numbers: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="backoff"):
        Backoff(*numbers)
