import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.addresses import parse_address, validate_address
from services.common.errors import InvalidRequestError


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
