"""A request's header block across its frames: find its end, read it, append a field. Pure."""

from __future__ import annotations

import struct

from .http2 import CONTINUATION, END_HEADERS, HEADER, MAX_FRAME, PADDED, WITH_PRIORITY, frame

LARGEST = 1024 * 1024
"""Bytes of one header block; gRPC servers take no more than 8 to 64 KiB by default."""
_MOST_FRAMES = 256
"""Frames of one block: 64 can hold the most bytes allowed. Each new piece rescans all of them."""

_words = struct.Struct(">Q").unpack_from


class BrokenFramesError(Exception):
    """The peer's bytes are not HTTP/2, or exceed a limit."""


def block_end(data: bytes, at: int) -> int:
    """Return the end of the block whose HEADERS frame begins at `at`; 0 if it is incomplete.

    Raises BrokenFramesError.
    """
    start, seen = at, 0
    while at + HEADER <= len(data):
        (words,) = _words(data, at)
        if seen and words >> 32 & 255 != CONTINUATION:
            raise BrokenFramesError("a header block is interrupted")
        at += HEADER + (words >> 40)
        if at - start > LARGEST:
            break
        if words & END_HEADERS << 24:
            return at if at <= len(data) else 0
        seen += 1
        if seen == _MOST_FRAMES:
            raise BrokenFramesError(f"a header block has more than {_MOST_FRAMES} frames")
    if at - start > LARGEST:
        raise BrokenFramesError(f"a header block has more than {LARGEST} bytes")
    return 0


def content(frames: bytes) -> bytes:
    """Return the encoded header fields in these frames. Raises BrokenFramesError."""
    (words,) = _words(frames, 0)
    end = HEADER + (words >> 40)
    start, padding = HEADER, 0
    if words & PADDED << 24:
        padding = frames[start] if end > start else 0
        start += 1
    if words & WITH_PRIORITY << 24:
        start += 5
    if start + padding > end:
        raise BrokenFramesError("a frame has more padding than bytes")
    block = frames[start : end - padding]
    while end < len(frames):
        (words,) = _words(frames, end)
        start, end = end + HEADER, end + HEADER + (words >> 40)
        block += frames[start:end]
    return block


def with_field(frames: bytes, field: bytes) -> bytes:
    """Return the block with `field` appended, in its last frame or in an additional one."""
    if not field:
        return frames
    last = at = 0
    while at < len(frames):
        (words,) = _words(frames, at)
        last, at = at, at + HEADER + (words >> 40)
    (words,) = _words(frames, last)
    length, kind, flags = words >> 40, words >> 32 & 255, words >> 24 & 255
    stream = int.from_bytes(frames[last + 5 : last + HEADER], "big")
    before, fields = frames[:last], frames[last + HEADER :]
    if length + len(field) <= MAX_FRAME and not flags & PADDED:
        return before + frame(kind, flags, stream, fields + field)
    return (
        before
        + frame(kind, flags & ~END_HEADERS, stream, fields)
        + frame(CONTINUATION, END_HEADERS, stream, field)
    )
