"""Follows the frames from a backend to the client of a spliced connection: a call is over when its stream is.

A gRPC call is over when the server has ended its stream, or either side has reset it.
"""

from __future__ import annotations

import struct

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
)
from .open_streams import BEGUN, OpenStreams

_words = struct.Struct(">Q").unpack_from
"""Length (24 bits), type, flags, and all but the last byte of the stream."""
_STREAM = 0x7FFFFFFF
_BEGINS = HEADERS << 8 | END_HEADERS
_ENDS = HEADERS << 8 | END_HEADERS | END_STREAM
"""Type and flags of the two header blocks that nearly every response has."""
_NOT_PLAIN = 0xFF << 32 | END_STREAM << 24
"""Bits that tell any other frame from DATA that goes on."""


class Greeting:
    """The backend's first frames, of which some acknowledgements are left out.

    The client's SETTINGS were acknowledged from here while there was no backend, and some clients hang up
    on a second acknowledgement.
    """

    __slots__ = ("_part", "acks")

    def __init__(self, acks: int) -> None:
        """Leave out so many."""
        self.acks = acks
        self._part = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next piece and return what goes on to the client: whole frames until all are found."""
        data = self._part + data
        at = start = 0
        pieces = []
        while self.acks and at + HEADER <= len(data):
            (words,) = _words(data, at)
            end = at + HEADER + (words >> 40)
            if end > len(data):
                break
            if words >> 32 & 255 == SETTINGS and words & ACK << 24:
                self.acks -= 1
                pieces.append(data[start:at])
                start = end
            at = end
        whole = at if self.acks else len(data)
        self._part = data[whole:]
        return b"".join((*pieces, data[start:whole]))


class BackendFrames:
    """Follows the frames from the backend to the client, which it never changes.

    To be fed with what was passed on already, in any pieces: a stream ends with the last byte of its last
    frame, not with the first.
    """

    __slots__ = ("_block", "_ending", "_part", "_skip", "_streams")

    def __init__(self, streams: OpenStreams) -> None:
        """Keep these streams up to date."""
        self._streams = streams
        self._skip = 0
        """Bytes of the frame in progress that are still to come."""
        self._part = b""
        """The beginning of a frame whose header is not whole."""
        self._ending = 0
        """The stream that ends with the frame, or the header block, in progress."""
        self._block = False
        """A header block goes on with the next frame."""

    @property
    def at_boundary(self) -> bool:
        """Whether a frame of our own may follow what was passed on so far."""
        return not (self._skip or self._part or self._block)

    def feed(self, data: bytes) -> int:
        """Take the next piece; returns how many calls ended in it."""
        if self._part:
            data = self._part + data
            self._part = b""
        size = len(data)
        at = self._skip
        if at > size:
            self._skip = at - size
            return 0
        ended = 0
        if self._ending and not self._block:
            ended = self._streams.ended(self._ending)
            self._ending = 0
        last = size - HEADER
        opened = self._streams.flags
        while at <= last:
            (words,) = _words(data, at)
            if not words & _NOT_PLAIN:
                at += HEADER + (words >> 40)
                continue
            start = at
            at += HEADER + (words >> 40)
            shape = words >> 24 & 0xFFFF
            if shape == _BEGINS:
                stream = (words << 8 | data[start + 8]) & _STREAM
                if stream in opened:
                    opened[stream] |= BEGUN
                continue
            if shape == _ENDS and at <= size:
                ended += self._streams.ended((words << 8 | data[start + 8]) & _STREAM)
                continue
            kind = shape >> 8
            if kind > RST_STREAM:
                if kind == GOAWAY:
                    if start + HEADER + 4 > size:
                        at = start
                        break  # until its last stream is here
                    above = int.from_bytes(data[start + 9 : start + 13], "big") & _STREAM
                    ended += self._streams.ended_above(above)
                elif kind == CONTINUATION and words >> 24 & END_HEADERS:
                    self._block = False
                    if self._ending:
                        if at > size:
                            break
                        ended += self._streams.ended(self._ending)
                        self._ending = 0
                continue
            stream = (words << 8 | data[start + 8]) & _STREAM
            flags = words >> 24
            if kind == HEADERS:
                if not flags & END_STREAM:
                    known = self._streams.flags.get(stream)
                    if known is not None:
                        self._streams.flags[stream] = known | BEGUN
                    self._block = not flags & END_HEADERS
                    continue
                if not flags & END_HEADERS:
                    self._block = True
                    self._ending = stream
                    continue
            elif kind != RST_STREAM and kind != DATA:
                continue  # PRIORITY
            if at > size:
                self._ending = stream
                break
            ended += self._streams.ended(stream)
        if at > size:
            self._skip = at - size
        else:
            self._skip = 0
            self._part = bytes(data[at:])
        return ended
