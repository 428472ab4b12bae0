"""GGUF headers: a model file's metadata, read without its tensors.

The reader maps the file, skips long arrays and checks every count against the bytes that are
left, so a truncated, corrupt or hostile file costs milliseconds and raises `BadModel`.
"""

import math
import mmap
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import BadModel, Missing

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# Far above any real model (a vocabulary has 262,144 entries, DeepSeek-V3 1,025 tensors); they
# bound the work a hostile header can ask for.
MAX_METADATA = 1 << 16
MAX_TENSORS = 1 << 20
MAX_STRINGS = 1 << 24
MAX_STRING = 1 << 26
MAX_DIMENSIONS = 4
MAX_NESTING = 4
HEAD = 8

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64, _FIXED = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<4sIQQ")

# ggml type -> (weights in a block, bytes of a block); types not listed are not size-checked.
BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
    40: (64, 36),
    41: (128, 18),
}

_ENCODERS = ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert")
_POOLING_RANK = 4
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True)
class Array:
    """An array in the metadata: how long it is, and its first few elements."""

    length: int
    head: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Tensor:
    """One tensor's place: `offset` counts from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """The part of the file before the weights."""

    path: Path
    file_size: int
    version: int
    metadata: dict[str, Any] = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)

    @property
    def architecture(self) -> str:
        """The name that llama.cpp chooses its code by, such as `llama` or `bert`."""
        return str(self.metadata.get("general.architecture", ""))

    def _own(self, key: str, default: int = 0) -> int:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        return int(value) if isinstance(value, int | float) and math.isfinite(value) else default

    @property
    def context_length(self) -> int:
        """Tokens the model was trained for; 0 if the file has no value."""
        return self._own("context_length")

    @property
    def pooling(self) -> int | None:
        """llama.cpp's pooling type when the file asks for one."""
        if f"{self.architecture}.pooling_type" not in self.metadata:
            return None
        return self._own("pooling_type")

    @property
    def is_encoder(self) -> bool:
        """Whether the model only embeds: it has no next token to predict."""
        causal = self.metadata.get(f"{self.architecture}.attention.causal", True)
        return self.architecture in _ENCODERS or causal is False

    @property
    def is_reranker(self) -> bool:
        """Whether the model scores pairs of texts."""
        return self.pooling == _POOLING_RANK

    @property
    def chat_template(self) -> str:
        """The Jinja template of the model's conversations, or an empty string."""
        return str(self.metadata.get("tokenizer.chat_template", ""))

    @property
    def adds_space(self) -> bool:
        """Whether the tokenizer puts a space in front of every text (SentencePiece)."""
        sentence_piece = self.metadata.get("tokenizer.ggml.model") == "llama"
        return sentence_piece and self.metadata.get("tokenizer.ggml.add_space_prefix", True) is True

    @property
    def parameters(self) -> int:
        """How many weights the file holds."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


class _Reader:
    """A cursor over the mapped file that never reads past its end."""

    def __init__(self, data: "mmap.mmap | bytes") -> None:
        self.data = data
        self.size = len(data)
        self.at = 0

    def need(self, count: int) -> None:
        if count > self.size - self.at:
            raise BadModel(
                f"truncated: the header needs {count} more bytes at offset {self.at}, "
                f"the file ends at {self.size}"
            )

    def scalar(self, layout: struct.Struct) -> Any:
        self.need(layout.size)
        (value,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return value

    def skip_string(self) -> int:
        length: int = self.scalar(_U64)
        if length > MAX_STRING:
            raise BadModel(f"corrupt: a string of {length} bytes at offset {self.at}")
        self.need(length)
        self.at += length
        return length

    def string(self) -> str:
        length = self.skip_string()
        return bytes(self.data[self.at - length : self.at]).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(depth)
        if kind not in _SCALARS:
            raise BadModel(f"corrupt: unknown value type {kind} at offset {self.at}")
        return self.scalar(_SCALARS[kind])

    def array(self, depth: int) -> Array:
        kind, length = self.scalar(_U32), self.scalar(_U64)
        if kind in _SCALARS:
            layout = _SCALARS[kind]
            self.need(layout.size * length)
            end = self.at + layout.size * length
            head = tuple(self.scalar(layout) for _ in range(min(length, HEAD)))
            self.at = end
            return Array(length, head)
        # Every element takes at least eight bytes (its own length).
        if length > MAX_STRINGS or depth >= MAX_NESTING:
            raise BadModel(f"corrupt: an array of {length} elements, {depth} deep, at {self.at}")
        self.need(8 * length)
        if kind == _STRING:
            head = tuple(self.string() for _ in range(min(length, HEAD)))
            for _ in range(length - len(head)):
                self.skip_string()
            return Array(length, head)
        if kind != _ARRAY:
            raise BadModel(f"corrupt: unknown array type {kind} at offset {self.at}")
        nested = [self.array(depth + 1) for _ in range(length)]
        return Array(length, tuple(nested[:HEAD]))

    def tensor(self) -> Tensor:
        name = self.string()
        dimensions: int = self.scalar(_U32)
        if dimensions > MAX_DIMENSIONS:
            raise BadModel(f"corrupt: tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.scalar(_U64) for _ in range(dimensions))
        return Tensor(name, shape, self.scalar(_U32), self.scalar(_U64))


def _check_data(tensors: tuple[Tensor, ...], start: int, file_size: int) -> None:
    """Raise unless every tensor lies inside the file."""
    for tensor in tensors:
        per_block, block_bytes = BLOCKS.get(tensor.type, (1, 0))
        weights = math.prod(tensor.shape)
        if weights % per_block:
            raise BadModel(f"corrupt: tensor {tensor.name!r} is no whole number of blocks")
        end = start + tensor.offset + weights // per_block * block_bytes
        if end > file_size:
            raise BadModel(
                f"truncated: tensor {tensor.name!r} ends at byte {end}, the file at {file_size}; "
                "download it again"
            )


def parse(data: "mmap.mmap | bytes", path: Path = Path()) -> Header:
    """Read a header from the bytes of a whole file.

    Raises:
        BadModel: not a GGUF file, an unknown version, corrupt, or truncated.
    """
    if bytes(data[:4]) != MAGIC:
        raise BadModel(f"not a GGUF file: it starts with {bytes(data[:4])!r}")
    reader = _Reader(data)
    reader.need(_FIXED.size)
    _, version, tensor_count, metadata_count = _FIXED.unpack_from(data, 0)
    reader.at = _FIXED.size
    if version not in VERSIONS:
        raise BadModel(f"unsupported GGUF version {version}; this backend reads {VERSIONS}")
    if metadata_count > MAX_METADATA or tensor_count > MAX_TENSORS:
        raise BadModel(f"corrupt: {metadata_count} metadata entries and {tensor_count} tensors")
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = reader.string()
        if key in metadata:
            raise BadModel(f"corrupt: metadata key {key!r} appears twice")
        metadata[key] = reader.value(reader.scalar(_U32))
    tensors = tuple(reader.tensor() for _ in range(tensor_count))
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise BadModel(f"corrupt: alignment {alignment!r} is no power of two")
    if not isinstance(metadata.get("general.architecture"), str):
        raise BadModel("corrupt: no general.architecture; is it a model file?")
    start = -(-reader.at // alignment) * alignment
    _check_data(tensors, start, len(data))
    return Header(path, len(data), version, metadata, tensors)


def shards(path: Path) -> list[Path]:
    """All files of a model that was split (`…-00001-of-00003.gguf`); the path itself otherwise."""
    match = _SHARD.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    return [
        path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)
    ]


def read(path: Path) -> Header:
    """Read and check the header of a model file, and that none of its shards is missing.

    Raises:
        Missing: the file, or a shard of it, does not exist.
        BadModel: it can not be read, or is no usable GGUF file.
    """
    for part in shards(path):
        if not part.is_file():
            what = "is a folder" if part.is_dir() else "does not exist"
            raise Missing(f"model file {str(part)!r} {what}")
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise BadModel(f"model file {str(path)!r} is not a GGUF file: it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return parse(data, path)
    except OSError as error:
        raise BadModel(f"model file {str(path)!r} can not be read: {error.strerror}") from error
    except BadModel as error:
        raise BadModel(f"model file {str(path)!r} is {error}") from error
