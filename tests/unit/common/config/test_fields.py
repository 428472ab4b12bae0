import pytest

from services.common.config.fields import parse_name_uri, parse_name_uris


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
