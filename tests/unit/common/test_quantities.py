"""Durations, sizes, addresses and backoff: pure functions, pinned by examples and properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.addresses import parse_address, validate_address
from services.common.backoff import Backoff
from services.common.config.fields import parse_name_uris
from services.common.config.settings import parse_name_uri
from services.common.errors import InvalidRequestError
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


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("localhost:1", "localhost:1"),
        (" 127.0.0.1:50051 ", "127.0.0.1:50051"),
        ("[::1]:50051", "[::1]:50051"),
        ("[fe80::1%eth0]:80", "[fe80::1%eth0]:80"),
        ("unix:/run/corral.sock", "unix:/run/corral.sock"),
        ("unix:///run/corral.sock", "unix:/run/corral.sock"),
        ("unix:relative.sock", "unix:relative.sock"),
        ("my_host.example:65535", "my_host.example:65535"),
    ],
)
def test_addresses(text: str, normal: str) -> None:
    assert validate_address(text) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "localhost",
        ":50051",
        "localhost:",
        "localhost:x",
        "localhost:0",
        "localhost:70000",
        "localhost:-1",
        "localhost:٣",
        "::1:50051",
        "http://localhost:1",
        "local host:1",
        "unix:",
        "unix:/a\nb",
        "unix:/" + "x" * 107,
        "[zz]:1",
        "*:1",
        "-:1",
    ],
)
def test_bad_addresses_name_the_field(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate_address(text, field="loader_address")
    assert caught.value.violations[0].field == "loader_address"
    assert str(caught.value).startswith("loader_address: ")


def test_listening_takes_more() -> None:
    assert validate_address(":50051", listen=True) == "[::]:50051"
    assert validate_address("*:50051", listen=True) == "[::]:50051"
    assert validate_address("127.0.0.1:0", listen=True) == "127.0.0.1:0"


@given(st.text(max_size=40))
def test_an_address_is_normal_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except InvalidRequestError:
        return
    assert parse_address(str(address)) == address


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


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("whisper=127.0.0.1:50060", ("whisper", "127.0.0.1:50060")),
        ("whisper:127.0.0.1:50060", ("whisper", "127.0.0.1:50060")),
        ("w=unix:/run/a=b", ("w", "unix:/run/a=b")),
        (" w : /opt/w/run.sh ", ("w", "/opt/w/run.sh")),
    ],
)
def test_name_and_uri(text: str, pair: tuple[str, str]) -> None:
    assert parse_name_uri(text) == pair


@pytest.mark.parametrize("text", ["", "whisper", "=uri", "name=", ":x"])
def test_bad_name_and_uri(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=URI"):
        parse_name_uri(text)


def test_many_names_and_uris() -> None:
    assert parse_name_uris("a=1:1,b:2:2") == {"a": "1:1", "b": "2:2"}
    assert parse_name_uris(["a=1:1", "a=1:1"]) == {"a": "1:1"}
    assert parse_name_uris({"a": "x"}) == {"a": "x"}
    with pytest.raises(ValueError, match="twice"):
        parse_name_uris(["a=1", "a=2"])
