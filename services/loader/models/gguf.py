"""GGUF headers: a model file's description of itself, read without its weights.

The format is ggml's (version 2 and 3, little endian). Long arrays are skipped, and every length is
checked against the file's end, so a truncated, corrupt or hostile file costs milliseconds and
raises `GgufError`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)

# Far above any real model: they bound what a hostile header can ask for.
_MAXIMUM_ENTRIES: Final = 1 << 14
_MAXIMUM_STRING: Final = 1 << 24
_MAXIMUM_ELEMENTS: Final = 1 << 22
_MAXIMUM_HEADER: Final = 1 << 26
_KEPT: Final = 1024
"""Elements of arrays of numbers to keep: heads are counted for each layer, vocabularies are longer."""
_LARGEST: Final = 2**31 - 1
"""No count of anything is larger; the wire has no room for it either."""
_FIRST_READ: Final = 1 << 20

_FIXED, _LENGTH, _KIND = struct.Struct("<4sIQQ"), struct.Struct("<Q"), struct.Struct("<I")
_STRING, _ARRAY = 8, 9
_NUMBERS: Final[Mapping[int, struct.Struct]] = {
    number: struct.Struct(f"<{letter}") for number, letter in enumerate("BbHhIif?")
} | {10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d")}

_ENCODERS: Final = frozenset(
    ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert")
)
_SHARD: Final = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")
_FILE_TYPES: Final = [
    "F32",
    "F16",
    "Q4_0",
    "Q4_1",
    "-",
    "-",
    "-",
    "Q8_0",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
    "IQ2_XXS",
    "IQ2_XS",
    "Q2_K_S",
    "IQ3_XS",
    "IQ3_XXS",
    "IQ1_S",
    "IQ4_NL",
    "IQ3_S",
    "IQ3_M",
    "IQ2_S",
    "IQ2_M",
    "IQ4_XS",
    "IQ1_M",
    "BF16",
]
"""Names of `general.file_type`, by number, as llama.cpp prints them."""


class GgufError(ValueError):
    """The file is not GGUF, or is incomplete; the message names which."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header, which precedes the weights; a number that the file does not give is 0."""

    size: int
    """Bytes of all files that the model is split into."""
    metadata: Mapping[str, Any] = field(repr=False, default_factory=dict)
    """Texts, numbers, and short arrays of numbers; of longer ones and of texts only the length."""

    @property
    def architecture(self) -> str:
        """The name that llama.cpp chooses its code by, such as `llama`."""
        name = self.metadata.get("general.architecture")
        return name if isinstance(name, str) else ""

    @property
    def file_type(self) -> str:
        """Quantization of most weights, such as `Q4_K_M`; empty if the file does not give it."""
        number = self.metadata.get("general.file_type", -1)
        known = isinstance(number, int) and 0 <= number < len(_FILE_TYPES)
        return _FILE_TYPES[number].strip("-") if known else ""

    @property
    def trained_context(self) -> int:
        """Tokens that the model was trained for at once."""
        return self.number("context_length")

    @property
    def layers(self) -> int:
        """Blocks of weights."""
        return self.number("block_count")

    @property
    def embedding(self) -> int:
        """The width of the model."""
        return self.number("embedding_length")

    @property
    def heads(self) -> int:
        """Attention heads of a layer, the most that any has."""
        return max(self.numbers("attention.head_count"), default=0)

    @property
    def kv_heads(self) -> list[int]:
        """Heads whose keys and values are kept, for each layer."""
        counts = self.numbers("attention.head_count_kv") or self.numbers("attention.head_count")
        return counts if len(counts) > 1 else counts * min(self.layers, _KEPT)

    @property
    def predicts_ahead(self) -> bool:
        """Whether it has layers that predict several tokens (MTP)."""
        return self.number("nextn_predict_layers") > 0

    @property
    def has_chat_template(self) -> bool:
        """Whether the file contains a chat template."""
        return bool(self.metadata.get("tokenizer.chat_template"))

    @property
    def is_encoder(self) -> bool:
        """Whether it turns whole texts into vectors, and cannot predict tokens."""
        causal = self.metadata.get(f"{self.architecture}.attention.causal", True)
        return self.architecture in _ENCODERS or causal is False

    def number(self, key: str) -> int:
        """Return one of the architecture's own numbers, such as `context_length`."""
        return next(iter(self.numbers(key)), 0)

    def numbers(self, key: str) -> list[int]:
        """Return the same where there may be one for each layer."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        values = value if isinstance(value, list) else [value]
        return [
            v
            for v in values
            if isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= _LARGEST
        ]


def read_header(path: Path) -> Header:
    """Read a model file's header. Raises GgufError, and OSError if there is no such file."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        metadata = _Reader(file, size).metadata()
    for shard in shards(path):
        if shard != path and shard.is_file():
            size += shard.stat().st_size
    return Header(size, metadata)


def shards(path: Path) -> list[Path]:
    """Return all files of a split model (`m-00001-of-00003.gguf`), or just the path if it is not
    split."""
    match = _SHARD.fullmatch(path.name)
    if match is None or not 0 < int(match["count"]) <= _KEPT:
        return [path]
    count = int(match["count"])
    return [
        path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]


class _Reader:
    """A cursor over the beginning of a file; it reads only as much as it needs."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._limit = min(size, _MAXIMUM_HEADER)
        self._data = file.read(min(self._limit, _FIRST_READ))
        self._at = 0

    def metadata(self) -> dict[str, Any]:
        if self._data[:4] != MAGIC:
            raise GgufError("is not a GGUF file")
        _, version, _, entries = self._unpack(_FIXED)
        if version not in _VERSIONS:
            raise GgufError(f"has GGUF version {version}; {_VERSIONS} can be read")
        if entries > _MAXIMUM_ENTRIES:
            raise GgufError(f"is corrupt: it has {entries} entries of metadata")
        return dict(self._entry() for _ in range(entries))

    def _entry(self) -> tuple[str, Any]:
        key = self._string()
        (kind,) = self._unpack(_KIND)
        return key, self._value(kind)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _NUMBERS:
            raise GgufError(f"is corrupt: type {kind} at byte {self._at}")
        return self._unpack(_NUMBERS[kind])[0]

    def _array(self) -> list[Any] | int:
        (kind,) = self._unpack(_KIND)
        (count,) = self._unpack(_LENGTH)
        if count > _MAXIMUM_ELEMENTS:
            raise GgufError(f"is corrupt: an array of {count} at byte {self._at}")
        if kind == _STRING:
            self._skip_strings(count)
            return int(count)
        if kind not in _NUMBERS:
            raise GgufError(f"is corrupt: an array of type {kind} at byte {self._at}")
        layout = _NUMBERS[kind]
        end = self._at + count * layout.size
        self._need(end)
        if count > _KEPT:
            self._at = end
            return int(count)
        return [self._unpack(layout)[0] for _ in range(count)]

    def _skip_strings(self, count: int) -> None:
        at, left = self._at, count
        while left:
            at, left = _skip(self._data, at, left)
            if left:
                self._need(at + _LENGTH.size)
        self._at = at
        self._need(at)

    def _string(self) -> str:
        (length,) = self._unpack(_LENGTH)
        if length > _MAXIMUM_STRING:
            raise GgufError(f"is corrupt: a text of {length} bytes at byte {self._at}")
        start, self._at = self._at, self._at + length
        self._need(self._at)
        return self._data[start : self._at].decode("utf-8", "replace")

    def _unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        start, self._at = self._at, self._at + layout.size
        self._need(self._at)
        return layout.unpack_from(self._data, start)

    def _need(self, end: int) -> None:
        """Read the file's bytes up to `end`. Raises GgufError if the file is shorter."""
        if end > self._limit:
            raise GgufError(f"is truncated: its header needs more than {self._limit} bytes")
        while end > len(self._data):
            more = self._file.read(max(len(self._data), end - len(self._data)))
            if not more:
                raise GgufError("is truncated: it became shorter while it was read")
            self._data += more


def _skip(data: bytes, at: int, left: int) -> tuple[int, int]:
    """Go over texts as far as the data reaches; return where, and how many are left."""
    unpack = _LENGTH.unpack_from
    try:
        # A vocabulary has 150,000 and more: this loop is the cost of a header.
        for rest in range(left, 0, -1):
            left = rest
            at += 8 + unpack(data, at)[0]
    except (struct.error, OverflowError):
        return at, left
    return at, 0
