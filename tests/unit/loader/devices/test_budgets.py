"""Budgets as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidRequestError
from services.loader.devices.budgets import WHOLE, Budget, parse_budget

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80%", 80 * GIB),
        (" 12.5 % ", 12.5 * GIB),
        ("100%", 100 * GIB),
        ("0.8", 80 * GIB),
        (".5", 50 * GIB),
        ("1", 100 * GIB),
        ("1.0", 100 * GIB),
        ("12GB", 12 * 10**9),
        ("12GiB", 12 * GIB),
        ("12g", 12 * GIB),
        ("0.5GiB", GIB // 2),
        ("2", 2),
        ("1073741824", GIB),
        ("200GiB", 100 * GIB),
        ("", 100 * GIB),
        ("  ", 100 * GIB),
    ],
)
def test_budgets(text: str, size: float) -> None:
    assert parse_budget(text, "vram_budget").of(100 * GIB) == pytest.approx(size, abs=1)


def test_no_limit() -> None:
    assert parse_budget("", "ram_budget") is WHOLE


@pytest.mark.parametrize(
    "text",
    [
        *("101%", "100.1%", "0%", "0", "0.0", "0GB", "-1", "-5%", "1.5", "%", "80 percent", "much"),
        *("1e3", "12XB", "nan", "inf", "٨٠%", "9" * 400 + "GB", "9" * 400 + "%", "80%%", "1,5"),
    ],
)
def test_what_is_none_names_the_field_and_the_remedy(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^vram_budget: .*write for example 80%") as info:
        parse_budget(text, "vram_budget")
    assert info.value.violations[0].field == "vram_budget"


@given(
    st.text(max_size=12) | st.from_regex(r"\A[0-9.]{1,6} ?(%|[kKmMgGtT]?i?[bB]?)\Z"),
    st.integers(0, 2**60),
)
def test_a_budget_is_never_more_than_the_device(text: str, total: int) -> None:
    try:
        budget = parse_budget(text, "f")
    except InvalidRequestError:
        return
    assert 0 <= budget.of(total) <= total


@given(st.integers(1, 100), st.integers(0, 2**50))
def test_a_share_is_the_same_in_percent(percent: int, total: int) -> None:
    in_percent = parse_budget(f"{percent}%", "f")
    assert in_percent == Budget(fraction=percent / 100)
    assert in_percent.of(total) == parse_budget(str(percent / 100), "f").of(total)
