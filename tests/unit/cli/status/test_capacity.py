from hypothesis import given
from hypothesis import strategies as st

from services.cli.status import capacity


@given(total=st.integers(0, 2**45), available=st.integers(0, 2**46), reserved=st.integers(0, 2**46))
def test_a_bar_is_always_as_long(total: int, available: int, reserved: int) -> None:
    bar = capacity.bar(
        {"total_bytes": total, "available_bytes": available, "reserved_bytes": reserved}
    )
    assert len(bar) == 20
    assert bar == "".join(sorted(bar, key="█▒░".index))
    if reserved and total:
        assert bar.startswith("█")
