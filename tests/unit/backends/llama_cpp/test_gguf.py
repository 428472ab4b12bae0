"""The header reader: right about good files, quick and polite about all others."""

import contextlib
import math
import struct
import time
from pathlib import Path
from typing import Any

import gguf as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.llama_cpp import gguf
from backends.llama_cpp.errors import BadModel, Missing
from tests.tools.tiny_gguf import CHAT_TEMPLATE, write_tiny

# Far more than any header here takes; a reader that follows a wild count needs minutes.
TIME_LIMIT = 2.0


@pytest.fixture(scope="module")
def count(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("count", tmp_path_factory.mktemp("m") / "count.gguf")


@pytest.fixture(scope="module")
def header_bytes(count: Path) -> bytes:
    return count.read_bytes()


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def head(metadata: int = 0, tensors: int = 0, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, metadata)


ARCHITECTURE = string("general.architecture") + struct.pack("<I", 8) + string("llama")


def test_facts_of_a_language_model(count: Path) -> None:
    header = gguf.read(count)
    assert header.architecture == "llama"
    assert header.context_length == 2048
    assert header.chat_template == CHAT_TEMPLATE
    assert header.parameters == 96320
    assert header.file_size == count.stat().st_size
    assert not header.is_encoder
    assert not header.is_reranker
    assert header.adds_space
    assert header.pooling is None
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert tokens.length == 431
    assert tokens.head[:3] == ("<unk>", "<s>", "</s>")


@pytest.mark.parametrize(("kind", "rerank"), [("embed", False), ("rerank", True)])
def test_facts_of_encoders(tmp_path: Path, kind: str, rerank: bool) -> None:
    header = gguf.read(write_tiny(kind, tmp_path / "m.gguf"))
    assert header.is_encoder
    assert header.is_reranker is rerank
    assert header.pooling == (4 if rerank else 1)
    assert not header.adds_space


def test_same_as_the_reference_reader(count: Path) -> None:
    header, other = gguf.read(count), reference.GGUFReader(count)
    assert [t.name for t in header.tensors] == [t.name for t in other.tensors]
    assert header.parameters == sum(math.prod(t.shape.tolist()) for t in other.tensors)
    own = {key for key in other.fields if not key.startswith("GGUF.")}
    assert set(header.metadata) == own


def test_block_sizes_are_the_reference_ones() -> None:
    for number, sizes in gguf.BLOCKS.items():
        assert reference.GGML_QUANT_SIZES[reference.GGMLQuantizationType(number)] == sizes


def test_every_cut_is_refused(header_bytes: bytes) -> None:
    end = gguf.parse(header_bytes).tensors
    assert end
    step = 997
    for length in (*range(64), *range(64, len(header_bytes), step), len(header_bytes) - 1):
        with pytest.raises(BadModel):
            gguf.parse(header_bytes[:length])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a GGUF file"),
        (b"ggml" + bytes(100), "not a GGUF file"),
        (head(version=1) + bytes(100), "version 1"),
        (head(version=9) + bytes(100), "version 9"),
        (head(metadata=1 << 60), "metadata entries"),
        (head(tensors=1 << 60), "tensors"),
        (head(), "general.architecture"),
        (head(metadata=1) + struct.pack("<Q", 1 << 62), "string of"),
        (head(metadata=1) + string("a") + struct.pack("<I", 77), "value type 77"),
        (head(metadata=2) + ARCHITECTURE * 2, "twice"),
        (
            head(metadata=1) + string("a") + struct.pack("<IIQ", 9, 8, 1 << 60),
            "array of",
        ),
        (head(metadata=1) + string("a") + struct.pack("<IIQ", 9, 4, 1 << 60), "truncated"),
        (
            head(metadata=1) + string("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50,
            "deep",
        ),
        (
            head(metadata=1, tensors=1) + ARCHITECTURE + string("t") + struct.pack("<I", 99),
            "dimensions",
        ),
        (
            head(metadata=2)
            + ARCHITECTURE
            + string("general.alignment")
            + struct.pack("<II", 4, 3),
            "power of two",
        ),
    ],
)
def test_what_is_wrong_is_named(data: bytes, words: str) -> None:
    with pytest.raises(BadModel, match=words):
        gguf.parse(data)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_behind_the_magic(data: bytes) -> None:
    begun = time.perf_counter()
    with pytest.raises(BadModel):
        gguf.parse(b"GGUF" + struct.pack("<I", 3) + data)
    assert time.perf_counter() - begun < TIME_LIMIT


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_changed_headers_are_read_or_refused(header_bytes: bytes, data: Any) -> None:
    changed = bytearray(header_bytes)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, 20000))
        new = data.draw(st.binary(min_size=1, max_size=8))
        changed[at : at + len(new)] = new
    begun = time.perf_counter()
    with contextlib.suppress(BadModel):
        gguf.parse(bytes(changed))
    assert time.perf_counter() - begun < TIME_LIMIT


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="does not exist"):
        gguf.read(tmp_path / "no.gguf")
    with pytest.raises(Missing, match="is a folder"):
        gguf.read(tmp_path)


def test_shards(tmp_path: Path, count: Path) -> None:
    first = tmp_path / "m-00001-of-00003.gguf"
    first.write_bytes(count.read_bytes())
    with pytest.raises(Missing, match="00002-of-00003"):
        gguf.read(first)
    for number in (2, 3):
        (tmp_path / f"m-0000{number}-of-00003.gguf").touch()
    assert gguf.read(first).architecture == "llama"
    assert gguf.shards(count) == [count]
