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
    if _key(number) not in message:
        return ""  # most requests name no model; this looks through a MiB in microseconds
    found = b""
    at, end = 0, len(message)
    try:
        while at < end:
            key, at = _varint(message, at)
            kind = key & 7
            if key >> 3 == 0:
                return ""  # no message: zeros, for one, would cost a step of this loop for each two
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
    return message + _key(number) + b"\0"


def _key(number: int) -> bytes:
    """Return how a string field of this number begins."""
    key = number << 3 | _BYTES
    encoded = bytearray()
    while key > 0x7F:
        encoded.append(key & 0x7F | 0x80)
        key >>= 7
    encoded.append(key)
    return bytes(encoded)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(_VARINT_BYTES):
        byte = message[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a varint is too long")
