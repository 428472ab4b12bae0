"""Just enough of the protobuf wire format to route a request without parsing it."""

from __future__ import annotations

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10
"""The longest varint there is."""


def string_field(message: bytes, number: int) -> str:
    """Return a top-level string field of a serialized message; empty if unset or malformed.

    The last occurrence counts, as protobuf has it. Everything else is skipped by its length, so a
    request with an image in it costs no more than a short one.
    """
    found = b""
    at, end = 0, len(message)
    try:
        while at < end:
            key, at = _varint(message, at)
            kind = key & 7
            if kind == _BYTES:
                size, at = _varint(message, at)
                if key >> 3 == number:
                    found = message[at : at + size]
                at += size
            elif kind == _VARINT:
                _, at = _varint(message, at)
            elif kind == _FIXED64:
                at += 8
            elif kind == _FIXED32:
                at += 4
            else:
                return ""
        return found.decode() if at == end else ""
    except (IndexError, ValueError):
        return ""


def with_empty_string(message: bytes, number: int) -> bytes:
    """Return the message with a string field cleared, by a later and empty occurrence of it."""
    key = number << 3 | _BYTES
    prefix = bytearray()
    while key > 0x7F:
        prefix.append(key & 0x7F | 0x80)
        key >>= 7
    prefix.append(key)
    return message + bytes(prefix) + b"\0"


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(_VARINT_BYTES):
        byte = message[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a varint is too long")
