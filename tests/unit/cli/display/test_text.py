import pytest

from services.cli.display import text


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (100 * 1024, "100 KiB"),
        (104857600, "100 MiB"),
        (9.5 * 1024**3, "9.5 GiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_sizes_have_three_digits(count: float, shown: str) -> None:
    assert text.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.004, "4 ms"),
        (0.35, "0.35 s"),
        (12.34, "12.3 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273600, "3 d 4 h"),
        (-1, "0 ms"),
    ],
)
def test_durations_have_their_two_largest_units(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_what_steers_a_terminal_is_made_visible() -> None:
    assert text.printable("a\x1b[31mb\x07\tc\nd\r") == "a\\x1b[31mb\\x07\tc\nd"
    assert text.printable("äöü 日本 🐎") == "äöü 日本 🐎"
    assert text.printable("a\u202eb\x9b") == "a\\u202eb\\x9b"


def test_emoji_that_are_joined_stay_whole() -> None:
    family = "👨\u200d👩\u200d👧"
    assert text.printable(family) == family


def test_clip_makes_one_line() -> None:
    assert text.clip("a\n b  c", 10) == "a b c"
    assert text.clip("abcdef ghi", 8) == "abcdef…"
