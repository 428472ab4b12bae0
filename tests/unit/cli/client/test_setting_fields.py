import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.client import setting_fields
from services.cli.failures import Failure
from services.common.quantities import parse_duration


@pytest.mark.parametrize("typed", ["queue_size", "queue-size", "--queue-size", " Queue_Size "])
def test_names_are_taken_as_flags_are_written(typed: str) -> None:
    assert setting_fields.named(typed) == "queue_size"


@pytest.mark.parametrize("typed", ["", "-", "xyzzy"])
def test_a_name_that_is_nothing_like_any(typed: str) -> None:
    with pytest.raises(Failure) as failed:
        setting_fields.named(typed)
    assert failed.value.exit_code == 2
    assert "did you mean" not in failed.value.hint


def test_a_part_of_a_name_finds_it() -> None:
    with pytest.raises(Failure) as failed:
        setting_fields.named("vram")
    assert "vram_budget" in failed.value.hint


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("bool", "ON", True),
        ("bool", "0", False),
        ("int", " 7 ", 7),
        ("float", "80%", 0.8),
        ("float", "0.5", 0.5),
        ("duration", "1h30m", 5400.0),
        ("str", "", ""),
    ],
)
def test_values_are_typed(kind: str, text: str, value: object) -> None:
    assert setting_fields.parse("threads", kind, text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [("int", "1.5"), ("int", "9999999999"), ("float", "nan"), ("float", "%"), ("duration", "-1s")],
)
def test_values_that_are_not_of_the_kind(kind: str, text: str) -> None:
    with pytest.raises(Failure, match="threads: "):
        setting_fields.parse("threads", kind, text)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("f16", "bool"),
        ("queue_size", "int"),
        ("memory_reclaimer_threshold", "float"),
        ("watchdog_interval", "duration"),
        ("ram_budget", "str"),
    ],
)
def test_the_kind_of_a_setting(name: str, kind: str) -> None:
    assert setting_fields.kind(name) == kind


@given(st.integers(0, 10**9).map(lambda ms: ms / 1000))
def test_what_is_shown_can_be_typed(seconds: float) -> None:
    assert parse_duration(setting_fields.shown(seconds, "duration")) == pytest.approx(seconds)
