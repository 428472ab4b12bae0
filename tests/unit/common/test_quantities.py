"""Durations and sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.quantities import (
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (1.5, 1.5),
        (0, 0),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("15m", 900),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1.5h", 5400),
        ("250us", 0.00025),
        ("0s", 0),
        (" 2d ", 172800),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "soon", "5x", "-1s", -1, "1m-2s", True, float("inf"), float("nan"), "m", "1h!"]
)
def test_bad_durations(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.integers(0, 10**7) | st.integers(0, 10**6).map(lambda n: n / 1000))
def test_a_duration_survives_being_written(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)


@given(st.floats(0, 1e9))
def test_any_duration_can_be_written(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (7, 7),
        ("1048576", 1 << 20),
        ("50MiB", 50 << 20),
        ("50 MB", 50_000_000),
        ("2g", 2 << 30),
        ("1.5KiB", 1536),
        ("10b", 10),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1", -5, "1XB", True])
def test_bad_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_a_size_survives_being_written(size: int) -> None:
    assert parse_size(format_size(size)) == size
