import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.line_splitter import LineSplitter

LONGEST = 64


def split(*chunks: bytes) -> list[str]:
    splitter = LineSplitter(LONGEST)
    return [line for chunk in (*chunks, b"") for line in splitter.feed(chunk)]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\nb\r\n\r\n", ["a", "b", ""]),
        (b"\n\na", ["", "", "a"]),
        (b"\r 10%\r 20%\r\n", [" 10%", " 20%"]),
        (b"\xff\xc3\n", ["\ufffd\ufffd"]),
        (b"\x1b[31mred\x1b[0m\n", ["\x1b[31mred\x1b[0m"]),
        (b"a\0b", ["a\0b"]),
        ("grün\u2028x\x0cy".encode(), ["grün\u2028x\x0cy"]),
    ],
)
def test_lines(data: bytes, lines: list[str]) -> None:
    assert split(data) == lines


@given(st.lists(st.sampled_from([b"a", b"\r", b"\n", "é".encode(), b"\xff", b"xyz"])), st.data())
def test_lines_do_not_depend_on_how_they_come(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    edges = [0, *cuts, len(whole)]
    chunks = [whole[a:b] for a, b in itertools.pairwise(edges) if a < b]
    assert split(*chunks) == split(whole)


def test_lines_are_put_together_from_pieces() -> None:
    splitter = LineSplitter(LONGEST)
    assert splitter.feed(b"one\ntw") == ["one"]
    assert splitter.feed(b"o\r\n\nthr\xc3") == ["two", ""]
    assert splitter.feed(b"\xa9e") == []
    assert splitter.feed(b"") == ["thr\u00e9e"]
    assert splitter.feed(b"") == []


def test_an_endless_line_is_cut() -> None:
    splitter = LineSplitter(LONGEST)
    assert splitter.feed(b"x" * (2 * LONGEST + 5)) == ["x" * LONGEST] * 2
    assert splitter.feed(b"y\n") == ["xxxxxy"]
