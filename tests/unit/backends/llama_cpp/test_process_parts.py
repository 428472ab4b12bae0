"""The small parts around the process: addresses, the parent, leftovers, replies, errors."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from backends.llama_cpp import address, errors, parent, scratch
from backends.llama_cpp.replies import Usage, Whole, delta_of, reply_of
from backends.llama_cpp.scratch import Scratch


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("[::1]:1", "[::1]:1"),
        (":7", "0.0.0.0:7"),
        ("localhost:0", "localhost:0"),
        ("unix:/a/b", "unix:/a/b"),
        ("unix:///a/b", "unix:/a/b"),
        ("unix:relative", "unix:relative"),
    ],
)
def test_addresses(text: str, target: str) -> None:
    assert address.parse(text).target == target


@pytest.mark.parametrize(
    "text", ["", "x", "x:y", "x:65536", "unix:", "unix://", "unix:/" + "x" * 107]
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(address.AddressError):
        address.parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2", 2), ("2s", 2), ("500ms", 0.5), ("1m", 60), ("", 2), ("x", 2), ("0", 2), ("-1", 2)],
)
def test_watch_intervals(text: str, seconds: float) -> None:
    assert parent.interval(text) == seconds


def test_scratch_is_private_and_goes(tmp_path: Path) -> None:
    base = Path("/tmp") / f"lc{os.getpid()}"
    base.mkdir()
    try:
        scratch_ = Scratch(base)
        first, second = scratch_.new_socket(), scratch_.new_socket()
        assert first != second
        assert first.parent.stat().st_mode & 0o077 == 0
        scratch_.remove()
        assert not list(base.iterdir())
        scratch_.remove()
    finally:
        base.rmdir()


def test_only_what_is_dead_and_old_is_swept(tmp_path: Path) -> None:
    gone = 2**22 + 1  # above the largest process id
    old = time.time() - 3600
    for name, age in (
        (f"{scratch.PREFIX}{gone}-old", old),
        (f"{scratch.PREFIX}{gone}-young", time.time()),
        (f"{scratch.PREFIX}{os.getpid()}-alive", old),
        (f"{scratch.PREFIX}x", old),
        ("other", old),
    ):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (age, age))
    scratch.sweep(tmp_path)
    left = {path.name.rpartition("-")[2] for path in tmp_path.iterdir()}
    assert left == {"young", "alive", "x", "other"}


def test_live_sockets(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert not scratch.listening(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        assert scratch.listening(path)
    assert not scratch.listening(path)


@pytest.mark.parametrize(
    ("error", "kind", "word"),
    [
        (
            {"type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 5},
            errors.InvalidRequest,
            "n_prompt=9",
        ),
        ({"type": "invalid_request_error", "message": "m"}, errors.InvalidRequest, "m"),
        ({"type": "not_supported_error", "message": "m"}, errors.WrongState, "m"),
        ({"type": "server_error", "message": "m"}, errors.EngineFailed, "m"),
        ({"type": "server_error", "message": "Failed to parse x"}, errors.InvalidRequest, "x"),
        (
            {"type": "server_error", "message": "Context size has been exceeded."},
            errors.Exhausted,
            "kv_unified",
        ),
        (
            {"type": "server_error", "message": "input is too large to process."},
            errors.InvalidRequest,
            "NBatch",
        ),
        ({}, errors.EngineFailed, "no reason"),
    ],
)
def test_engine_errors(error: dict[str, Any], kind: type[Exception], word: str) -> None:
    made = errors.from_engine(error)
    assert type(made) is kind
    assert word in str(made)


def test_chunks_become_replies_and_replies_one() -> None:
    usage, whole = Usage(), Whole()
    call = {"index": 0, "id": "i", "function": {"name": "f", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ": 1}"}}
    entry = {"token": "x", "logprob": -1.0}
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": None},
        {"reasoning_content": "hm"},
        {"content": "Grüße"},
        {"tool_calls": [call]},
        {"tool_calls": [more]},
    ]
    for number, delta in enumerate(deltas):
        chunk: dict[str, Any] = {"choices": [{"delta": delta, "logprobs": {"content": [entry]}}]}
        if number == 0:
            chunk["choices"][0]["logprobs"] = None
        made = delta_of(chunk)
        assert (made is None) == (number == 0)
        if made is not None:
            whole.add(reply_of(made, usage, chat=True))
    usage.update(
        {
            "usage": {"completion_tokens": 4, "prompt_tokens": 9},
            "timings": {
                "predicted_n": 4,
                "cache_n": 2,
                "prompt_n": 7,
                "prompt_ms": 1.5,
                "predicted_ms": 2.5,
            },
        }
    )
    whole.add(usage.reply())
    reply = whole.reply()
    assert reply.message.decode() == "Grüße"
    assert (reply.tokens, reply.prompt_tokens) == (4, 9)
    assert (reply.timing_prompt_processing, reply.timing_token_generation) == (1.5, 2.5)
    assert len(json.loads(reply.logprobs)["content"]) == 4
    (seen,) = reply.chat_deltas
    assert seen.reasoning_content == "hm"
    assert seen.tool_calls[0].name == "f"
    assert seen.tool_calls[0].arguments == '{"a": 1}'
