"""The HTTP/2 frames and header fields that a model endpoint reads and writes (RFC 9113).

An endpoint has no header table of its own: it writes literals without indexing (RFC 7541, section
6.2.2), which leave the tables of the client and the backend unchanged.
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
"""For DATA and HEADERS only; the same bit as ACK."""
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

NO_ERROR, PROTOCOL_ERROR = 0, 1
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9

MAX_FRAME: Final = 16384
"""The largest frame that every peer must accept (SETTINGS_MAX_FRAME_SIZE, section 6.5.2)."""

_STREAM: Final = 0x7FFFFFFF
_pack = struct.Struct(">HBBBI").pack
SHORT_HEADER: Final = struct.Struct(">IBI")
"""A frame's header as three small numbers: length (24 bits) and type, flags, stream."""
_STATUS_200: Final = b"\x88"
_SAFE: Final = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""The characters that gRPC does not escape in `grpc-message`: printable ASCII except `%`."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    length = len(payload)
    return _pack(length >> 8, length & 255, kind, flags, stream) + payload


def goaway(last: int, code: int = NO_ERROR, why: bytes = b"") -> bytes:
    """Return a GOAWAY: streams above `last` were not and will not be processed."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + why)


def rst_stream(stream: int, code: int) -> bytes:
    """Return a RST_STREAM."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def window_update(stream: int, size: int) -> bytes:
    """Return a WINDOW_UPDATE for `size` bytes; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, (size & _STREAM).to_bytes(4, "big"))


def literal(name: bytes, value: bytes, *, secret: bool = False) -> bytes:
    """Return a header field that is not indexed; if `secret`, proxies must not index it either."""
    return (b"\x10" if secret else b"\0") + _string(name) + _string(value)


def bearer(token: str) -> bytes:
    """Return the authorization field with the backend's token; empty without a token."""
    if not token:
        return b""
    return literal(b"authorization", b"Bearer " + token.encode(), secret=True)


def reply(stream: int, message: bytes) -> bytes:
    """Return a complete response to a unary call: headers, one message and the status OK."""
    size = len(message).to_bytes(4, "big")
    return b"".join(
        (
            frame(HEADERS, END_HEADERS, stream, _STATUS_200 + _CONTENT_TYPE),
            frame(DATA, 0, stream, b"\0" + size + message),
            frame(HEADERS, END_HEADERS | END_STREAM, stream, literal(b"grpc-status", b"0")),
        )
    )


def failure(stream: int, code: int, message: str, details: bytes, *, begun: bool) -> bytes:
    """Return the frames that end a call with a gRPC status.

    `details` is a serialized google.rpc.Status, or empty. `begun`: the response headers were
    already sent; otherwise they are included here (gRPC's Trailers-Only).
    """
    fields = [] if begun else [_STATUS_200, _CONTENT_TYPE]
    fields.append(literal(b"grpc-status", str(code).encode()))
    fields.append(literal(b"grpc-message", quote(message, safe=_SAFE).encode()))
    if details:
        fields.append(literal(b"grpc-status-details-bin", b64encode(details).rstrip(b"=")))
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, b"".join(fields))


def _string(value: bytes) -> bytes:
    """Return a header string literal without Huffman coding (RFC 7541, sections 5.1 and 5.2)."""
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
    """Return the frames that end a stream with these flags."""
    status = to_status(error)
    details = status.SerializeToString()
    return failure(stream, status.code, status.message, details, begun=bool(flags & BEGUN))
