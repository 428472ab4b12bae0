"""Follows a spliced connection's frames from the backend to the client, to see which calls end.

A gRPC call ends when the server ends its stream or either side resets it.
"""

from __future__ import annotations

from .http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    SHORT_HEADER,
)
from .streams import BEGUN, PROBE, OpenStreams

_head = SHORT_HEADER.unpack_from
_STREAM = 0x7FFFFFFF
_WHOLE = END_HEADERS | END_STREAM


class Greeting:
    """The backend's first frames, without the acknowledgements that the client already has.

    The endpoint acknowledged the client's SETTINGS while there was no backend, and some clients
    hang up on a second acknowledgement.
    """

    __slots__ = ("_part", "acks")

    def __init__(self, acks: int) -> None:
        """Leave out the first `acks` acknowledgements."""
        self.acks = acks
        self._part = b""

    def feed(self, data: bytes) -> bytes:
        """Return the bytes for the client: whole frames until all acknowledgements are found."""
        data = self._part + data
        at = start = 0
        pieces = []
        while self.acks and at + HEADER <= len(data):
            sized, flags, _ = _head(data, at)
            end = at + HEADER + (sized >> 8)
            if end > len(data):
                break
            if sized & 255 == SETTINGS and flags & ACK:
                self.acks -= 1
                pieces.append(data[start:at])
                start = end
            at = end
        whole = at if self.acks else len(data)
        self._part = data[whole:]
        return b"".join((*pieces, data[start:whole]))


class BackendFrames:
    """Follows the frames from the backend to the client, which it never changes.

    Feed it the bytes already passed on, in pieces of any size: a stream ends with the last byte of
    its last frame, not with the first.
    """

    __slots__ = ("_block", "_ending", "_part", "_skip", "_streams")

    def __init__(self, streams: OpenStreams) -> None:
        """Keep `streams` up to date."""
        self._streams = streams
        self._skip = 0
        """Bytes of the frame in progress that are still to come."""
        self._part = b""
        """The beginning of a frame whose header is incomplete."""
        self._ending = 0
        """The stream that ends with the current frame or header block."""
        self._block = False
        """The header block continues in the next frame."""

    @property
    def at_boundary(self) -> bool:
        """Whether the endpoint may send a frame of its own now."""
        return not (self._skip or self._part or self._block)

    def feed(self, data: bytes) -> int:
        """Read the next bytes and return the number of calls that ended in them."""
        if self._part:
            data = self._part + data
            self._part = b""
        size = len(data)
        at = self._skip
        if at > size:
            self._skip = at - size
            return 0
        ended = over = 0
        streams = self._streams
        if self._ending and not self._block:
            ended = streams.ended(self._ending)
            self._ending = 0
        last = size - HEADER
        opened = streams.flags
        while at <= last:
            sized, flags, stream = _head(data, at)
            start = at
            at += HEADER + (sized >> 8)
            kind = sized & 255
            if kind == DATA and not flags & END_STREAM:
                continue
            stream &= _STREAM
            if kind == HEADERS:
                if flags == _WHOLE and at <= size:
                    # Nearly every call's last frame.
                    if not opened.pop(stream, PROBE) & PROBE:
                        over += 1
                    continue
                if flags & END_STREAM:
                    if not flags & END_HEADERS:
                        self._block = True
                        self._ending = stream
                        continue
                else:
                    if stream in opened:
                        opened[stream] |= BEGUN
                    if not flags & END_HEADERS:
                        self._block = True
                    continue
            elif kind == GOAWAY:
                if start + HEADER + 4 > size:
                    at = start
                    break  # until the whole last-stream id is here
                above = int.from_bytes(data[start + 9 : start + 13], "big") & _STREAM
                ended += streams.ended_above(above)
                continue
            elif kind == CONTINUATION:
                if not flags & END_HEADERS:
                    continue
                self._block = False
                stream, self._ending = self._ending, 0
                if not stream:
                    continue
            elif kind != RST_STREAM and kind != DATA:
                continue
            # The stream ends with this frame.
            if at > size:
                self._ending = stream
                break
            ended += streams.ended(stream)
        streams.calls -= over
        ended += over
        if at > size:
            self._skip = at - size
        else:
            self._skip = 0
            self._part = bytes(data[at:])
        return ended
