"""Headers of real and of broken model files: bounded, quick, and never anything but GgufError."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.models.gguf import GgufError, read_header, shards
from tests.tools.tiny_gguf import write_tiny


def big(path: Path, tokens: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(131072)
    writer.add_block_count(3)
    writer.add_embedding_length(4096)
    writer.add_head_count(32)
    writer.add_head_count_kv([8, 0, 4])
    writer.add_file_type(15)
    writer.add_uint32("llama.nextn_predict_layers", 1)
    writer.add_token_list([f"token {number}" for number in range(tokens)])
    writer.add_token_scores([0.5] * tokens)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("a", np.zeros(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_header_tells_what_the_model_is(tmp_path: Path) -> None:
    header = read_header(write_tiny("count", tmp_path / "m.gguf", ctx=777, layers=2))
    assert (header.architecture, header.trained_context, header.file_type) == ("llama", 777, "F32")
    assert (header.layers, header.heads, header.kv_heads, header.embedding) == (2, 4, [4, 4], 64)
    assert header.has_chat_template and not header.is_encoder and not header.predicts_ahead
    assert header.size == (tmp_path / "m.gguf").stat().st_size
    encoder = read_header(write_tiny("embed", tmp_path / "e.gguf"))
    assert encoder.is_encoder and not encoder.has_chat_template


def test_a_large_vocabulary_is_skipped(tmp_path: Path) -> None:
    path = big(tmp_path / "big.gguf", 150_000)
    started = time.process_time()
    header = read_header(path)
    # Some 15 ms; a reader that makes a text of each takes ten times as long.
    assert time.process_time() - started < 0.5
    assert header.kv_heads == [8, 0, 4] and header.file_type == "Q4_K_M"
    assert header.has_chat_template and header.predicts_ahead
    assert header.metadata["tokenizer.ggml.tokens"] == 150_000


def test_the_parts_of_a_split_model_count(tmp_path: Path) -> None:
    paths = shards(tmp_path / "m-00001-of-00003.gguf")
    assert [path.name for path in paths[1:]] == ["m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]
    write_tiny("count", paths[0])
    paths[1].write_bytes(b"x" * 1000)
    assert read_header(paths[0]).size == paths[0].stat().st_size + 1000


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is not a GGUF file"),
        (b"GGML" + bytes(40), "is not a GGUF file"),
        (b"GGUF", "is truncated"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "version 1"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**60), "is corrupt"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**62), "is corrupt"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 8, 2**22), "is truncated"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 9, 1), "is corrupt"),
        (struct.pack("<4sIQQQ1sIIQQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 8, 2, 2**63), "is truncated"),
    ],
)
def test_what_is_no_model_is_told(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=what):
        read_header(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big(tmp_path_factory.mktemp("gguf") / "m.gguf", 50)


@given(data=st.data())
def test_no_damage_does_more_than_raise(sound: Path, data: st.DataObject) -> None:
    content = bytearray(sound.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = sound.with_name("damaged.gguf")
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        header = read_header(damaged)
    except GgufError:
        return
    assert header.trained_context >= 0 and header.size == damaged.stat().st_size
    assert len(header.kv_heads) <= 1024 and isinstance(header.file_type, str)
