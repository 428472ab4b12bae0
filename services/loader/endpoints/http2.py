"""HTTP/2 frames as far as a model endpoint reads and writes them (RFC 9113), and their header fields.

An endpoint never has a header table of its own: what it writes are literals without indexing (RFC 7541,
section 6.2.2), which leave the tables of the client and the backend as they are.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from typing import Final
from urllib.parse import quote

from services.common.errors import CorralError
from services.common.rpc.status import to_status

from .streams import BEGUN

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER: Final = 9
"""Bytes of a frame's header."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION: Final = 9

ACK: Final = 0x1
END_STREAM: Final = 0x1
"""Of DATA and HEADERS only; the same bit as ACK."""
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

NO_ERROR, PROTOCOL_ERROR = 0, 1
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9

MAX_FRAME: Final = 16384
"""The largest frame that every peer takes (SETTINGS_MAX_FRAME_SIZE, section 6.5.2)."""

_STREAM: Final = 0x7FFFFFFF
_pack = struct.Struct(">HBBBI").pack
SHORT_HEADER: Final = struct.Struct(">IBI")
"""A frame's header as three small numbers: length (24 bits) and type, flags, stream."""
_STATUS_200: Final = b"\x88"
_SAFE: Final = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""What gRPC leaves as it is in `grpc-message`: printable ASCII but the percent sign."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    length = len(payload)
    return _pack(length >> 8, length & 255, kind, flags, stream) + payload


def goaway(last: int, code: int = NO_ERROR, why: bytes = b"") -> bytes:
    """Return a GOAWAY: streams above `last` were not, and will not be, worked on."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + why)


def rst_stream(stream: int, code: int) -> bytes:
    """Return the end of one stream."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def window_update(stream: int, size: int) -> bytes:
    """Return leave to send so many bytes more; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, (size & _STREAM).to_bytes(4, "big"))


def literal(name: bytes, value: bytes, *, secret: bool = False) -> bytes:
    """Return a header field that no table keeps; a `secret` one is never kept by anybody on the way."""
    return (b"\x10" if secret else b"\0") + _string(name) + _string(value)


def bearer(token: str) -> bytes:
    """Return the header field that a backend asks for, nothing without a token."""
    if not token:
        return b""
    return literal(b"authorization", b"Bearer " + token.encode(), secret=True)


def reply(stream: int, message: bytes) -> bytes:
    """Return a whole answer to a unary call: headers, one message, and the status OK."""
    size = len(message).to_bytes(4, "big")
    return b"".join(
        (
            frame(HEADERS, END_HEADERS, stream, _STATUS_200 + _CONTENT_TYPE),
            frame(DATA, 0, stream, b"\0" + size + message),
            frame(HEADERS, END_HEADERS | END_STREAM, stream, literal(b"grpc-status", b"0")),
        )
    )


def failure(stream: int, code: int, message: str, details: bytes, *, begun: bool) -> bytes:
    """Return the end of a call with a gRPC status.

    `details` is a serialized google.rpc.Status, or empty. `begun`: the call's response headers were sent
    already; otherwise they are in here too (gRPC's Trailers-Only).
    """
    fields = [] if begun else [_STATUS_200, _CONTENT_TYPE]
    fields.append(literal(b"grpc-status", str(code).encode()))
    fields.append(literal(b"grpc-message", quote(message, safe=_SAFE).encode()))
    if details:
        fields.append(literal(b"grpc-status-details-bin", b64encode(details).rstrip(b"=")))
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, b"".join(fields))


def _string(value: bytes) -> bytes:
    """Return a string as header fields have it, not Huffman-coded (RFC 7541, sections 5.1 and 5.2)."""
    size = len(value)
    if size < 127:
        return bytes((size,)) + value
    size -= 127
    head = bytearray(b"\x7f")
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + value


_CONTENT_TYPE: Final = literal(b"content-type", b"application/grpc")


def call_failure(stream: int, flags: int, error: CorralError) -> bytes:
    """Return what ends a stream with these flags."""
    status = to_status(error)
    details = status.SerializeToString()
    return failure(stream, status.code, status.message, details, begun=bool(flags & BEGUN))
