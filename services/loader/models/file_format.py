"""A model file's format, by its content: names can be wrong, and many have no extension."""

from __future__ import annotations

import os
from pathlib import Path

GGUF, GGML, ONNX = "gguf", "ggml", "onnx"
SAFETENSORS, PYTORCH, DIFFUSERS = "safetensors", "pytorch", "diffusers"
CTRANSLATE2, TFLITE = "ctranslate2", "tflite"

_HEAD = 256
_GGML_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg")
"""`ggml`, `ggmf`, `ggjt` and `ggla`, with the small end first: what was before GGUF, and whisper's."""
_PICKLED = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The number with which PyTorch's files began before version 1.6, pickled."""
_LARGEST_HEADER = 100 * 1024 * 1024
"""Bytes that safetensors allows for its header."""
_ONNX_VERSION = 8
"""The tag of a model's first field, `ir_version`."""
_ONNX_NEXT = frozenset((0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42))
"""The tags of the fields that follow it: producer, domain, version, text, graph, operators."""
_LARGEST_IR_VERSION = 0x1F
_DIFFUSERS_INDEX = "model_index.json"
_MOST_ENTRIES = 1000
"""Entries of a folder to look at."""


def model_format(path: Path) -> str:
    """Return the format of a model's file or folder, such as `gguf`; empty if nothing shows it."""
    try:
        if path.is_dir():
            return _of_folder(path)
        with path.open("rb") as file:
            return format_of(file.read(_HEAD))
    except (OSError, ValueError):  # there is none, or its name cannot be one
        return ""


def format_of(head: bytes) -> str:
    """Return the format that a file's first bytes show; empty if they show none."""
    if head.startswith(b"GGUF"):
        return GGUF
    if head.startswith(_GGML_MAGICS):
        return GGML
    if head[4:8] == b"TFL3":
        return TFLITE
    if head.startswith(_PICKLED) or (head.startswith(b"PK\x03\x04") and b"/data.pkl" in head):
        return PYTORCH
    if len(head) > 8 and head[8:9] == b"{":
        size = int.from_bytes(head[:8], "little")
        if 2 <= size <= _LARGEST_HEADER:
            return SAFETENSORS
    if len(head) > 2 and head[0] == _ONNX_VERSION and head[1] <= _LARGEST_IR_VERSION:
        return ONNX if head[2] in _ONNX_NEXT else ""
    return ""


def _of_folder(path: Path) -> str:
    with os.scandir(path) as entries:
        names = {entry.name for entry, _ in zip(entries, range(_MOST_ENTRIES), strict=False)}
    if _DIFFUSERS_INDEX in names:
        return DIFFUSERS
    for ending, kind in ((".safetensors", SAFETENSORS), (".gguf", GGUF), (".onnx", ONNX)):
        if any(name.endswith(ending) for name in names):
            return kind
    if "model.bin" in names and any(name.startswith("vocabulary.") for name in names):
        return CTRANSLATE2
    if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names):
        return PYTORCH
    return ""
