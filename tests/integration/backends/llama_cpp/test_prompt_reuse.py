"""A slot does not read the start of a prompt twice, so a conversation's next turn is quick."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from corral.backend import backend_pb2 as pb
from tests.tools.llama_backend import CALL_TIMEOUT, Backend, backend
from tests.tools.tiny_gguf import write_tiny

TURN = " ".join(["one two three four five six seven eight nine ten"] * 6)
"""One message: about as many tokens as words."""
TURNS = 4


@contextmanager
def loaded(folder: Path, *options: str) -> Iterator[Backend]:
    model = write_tiny("count", folder / "count.gguf")
    with backend(f"unix:{folder}/b.sock", folder) as running:
        assert running.load(model, Options=["parallel:1", *options], ContextSize=4096).success
        yield running


def tokens_read(running: Backend, request: pb.PredictOptions) -> tuple[int, int]:
    """Return the length of the prompt and the number of its tokens that the engine had to read."""
    with running.stub() as stub:
        before = stub.GetMetrics(pb.MetricsRequest()).prompt_tokens_processed
        reply = stub.Predict(request, timeout=CALL_TIMEOUT)
        after = stub.GetMetrics(pb.MetricsRequest()).prompt_tokens_processed
    return reply.prompt_tokens, after - before


def conversation(running: Backend, **fields: Any) -> list[tuple[int, int]]:
    messages: list[pb.Message] = []
    turns = []
    for _ in range(TURNS):
        messages.append(pb.Message(role="user", content=TURN))
        request = pb.PredictOptions(
            UseTokenizerTemplate=True, Messages=messages, Tokens=3, **fields
        )
        turns.append(tokens_read(running, request))
        messages.append(pb.Message(role="assistant", content="one two three"))
    return turns


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ((), {}),
        (("prompt_cache_all:true",), {}),
        (("prompt_cache_all:false",), {"PromptCacheAll": True}),
    ],
    ids=["by default", "as the model says", "as the request asks"],
)
def test_a_turn_reads_only_what_is_new(
    tmp_path: Path, options: tuple[str, ...], fields: dict[str, Any]
) -> None:
    with loaded(tmp_path, *options) as running:
        (first, _), *later = conversation(running, **fields)
    for length, read in later:
        assert length > first
        assert read < 1.2 * first


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (("prompt_cache_all:false",), {}),
        (("cache_prompt:false",), {}),
        (("cache_prompt:false",), {"PromptCacheAll": True}),
    ],
    ids=["as the model says", "forbidden", "forbidden, though the request asks"],
)
def test_everything_is_read_again_where_reuse_is_off(
    tmp_path: Path, options: tuple[str, ...], fields: dict[str, Any]
) -> None:
    with loaded(tmp_path, *options) as running:
        turns = conversation(running, **fields)
    assert all(read == length for length, read in turns)


def test_another_prompt_with_the_same_beginning_reads_only_the_rest(tmp_path: Path) -> None:
    with loaded(tmp_path) as running:
        tokens_read(running, pb.PredictOptions(Prompt=f"{TURN} one two", Tokens=1))
        length, read = tokens_read(running, pb.PredictOptions(Prompt=f"{TURN} ten nine", Tokens=1))
    assert length > 50
    assert read < 10
