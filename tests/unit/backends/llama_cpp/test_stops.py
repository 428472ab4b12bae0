"""Stop words on text in pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.llama_cpp.stops import Piece, StopMatcher


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    out = [p for piece in pieces for p in matcher.feed(Piece(piece))]
    out += matcher.flush()
    return "".join(piece.text for piece in out), matcher.stopped


def expected(stops: list[str], text: str) -> str:
    """What a stream must give: it stops where the first stop word is completed."""
    for end in range(len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            return text[: min(found)]
    return text


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "stopped"),
    [
        ([], ["a", "b"], "ab", False),
        ([""], ["a"], "a", False),
        (["b"], ["a", "b", "c"], "a", True),
        (["bc"], ["ab", "cd"], "a", True),
        (["bc"], ["ab", "d"], "abd", False),
        (["bcx"], ["ab", "c"], "abc", False),
        (["aab"], ["a", "a", "a", "b"], "a", True),
        (["\n\n"], ["x\n", "y\n", "\n"], "x\ny", True),
        (["世界"], ["世", "界"], "", True),
        (["abc", "b"], ["a", "b", "c"], "a", True),
    ],
)
def test_cases(stops: list[str], pieces: list[str], text: str, stopped: bool) -> None:
    assert run(stops, pieces) == (text, stopped)


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    text=st.text("abc", max_size=30),
)
def test_one_character_at_a_time(stops: list[str], text: str) -> None:
    assert run(stops, list(text))[0] == expected(stops, text)


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
)
def test_any_pieces(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    passed, stopped = run(stops, pieces)
    assert text.startswith(passed)
    assert stopped == any(stop in text for stop in stops)
    assert not any(stop in passed for stop in stops)
    if not stopped:
        assert passed == text


def test_log_probabilities_go_with_their_text() -> None:
    matcher = StopMatcher(["cd"])
    out = []
    for number, text in enumerate(("a", "", "bc", "e", "c", "d")):
        out += matcher.feed(Piece(text, (number,)))
    assert "".join(p.text for p in out) == "abce"
    assert [n for p in out for n in p.logprobs] == [0, 1, 2, 3]
