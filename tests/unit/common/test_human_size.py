import pytest

from services.common.human_size import size_in_words


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (9.5 * 2**20, "9.5 MiB"),
        (104 * 2**20, "104 MiB"),
        (99.96 * 2**20, "100 MiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_a_size_has_three_digits_at_most(size: float, text: str) -> None:
    assert size_in_words(size) == text
