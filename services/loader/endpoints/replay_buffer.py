"""Buffers a client's frames while its connection has no backend, and answers those that need it.

The client must see a working HTTP/2 server (gRPC waits 20 s for the server's SETTINGS, a minute for
the acknowledgement of its own, and pings), whatever its model is doing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from .header_block import BrokenFramesError, block_end, content, with_field
from .http2 import (
    ACK,
    CANCEL,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADER,
    HEADERS,
    MAX_FRAME,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    rst_stream,
    window_update,
)
from .request_headers import Kind, Request, RequestHeaders
from .streams import PROBE, SENT, OpenStreams

_words = struct.Struct(">Q").unpack_from
_STREAM = 0x7FFFFFFF
_OVERHEAD = 128
"""Memory overhead of a kept frame, in bytes."""
_LATE = 64
"""Streams answered here, remembered since late frames may still arrive for them."""
_ACK_OF_SETTINGS = frame(SETTINGS, ACK, 0)


@dataclass(frozen=True, slots=True)
class _Kept:
    stream: int
    data: bytes
    opens: bool = False
    """Whether it is the header block of a request."""
    changed: bool = False
    """Whether it changed the header table: if so, the backend must get it in any case."""


class HeldFrames:
    """Reads all frames of a client, and keeps those that a backend must get."""

    __slots__ = (
        "_control",
        "_headers",
        "_kept",
        "_opened",
        "_part",
        "_preface",
        "_streams",
        "acks",
        "answered",
        "dead",
        "finished",
        "returned",
        "settings",
        "size",
        "to_client",
    )

    def __init__(
        self,
        streams: OpenStreams,
        headers: RequestHeaders,
        *,
        opened: Callable[[int, Request], bool],
        control: Callable[[int, Request], None],
    ) -> None:
        """`opened` is called with each call and probe, and returns whether it waits for a backend.

        If it does not wait, or if the method is reserved for the control plane, `control` is called
        once the request is complete.
        """
        self._streams = streams
        self._headers = headers
        self._opened = opened
        self._control = control
        self._preface = b""
        self._part = b""
        self._kept: list[_Kept] = []
        self.size = 0
        """The number of bytes kept."""
        self.dead = 0
        """The number of kept requests that were answered."""
        self.acks = 1
        """SETTINGS acknowledgements to leave out: they answer SETTINGS sent from here."""
        self.settings = 0
        """The number of the client's SETTINGS acknowledged from here."""
        self.answered: dict[int, Request | None] = {}
        self.to_client = bytearray()
        """Frames to send to the client; for the caller to take."""
        self.returned = 0
        """Bytes of DATA that no backend will get, for which the client must get its window back."""
        self.finished: list[int] = []
        """Streams that the client reset; for the caller to take."""

    @property
    def greeted(self) -> bool:
        """Whether the client has sent the HTTP/2 preface."""
        return len(self._preface) == len(PREFACE)

    def feed(self, data: bytes) -> None:
        """Read the next bytes. Raises HeadersError or BrokenFramesError."""
        if len(self._preface) < len(PREFACE):
            more = len(PREFACE) - len(self._preface)
            self._preface += data[:more]
            if not PREFACE.startswith(self._preface):
                raise BrokenFramesError("the client does not speak HTTP/2")
            data = data[more:]
        data = self._part + data
        at, size = 0, len(data)
        while at + HEADER <= size:
            (words,) = _words(data, at)
            length, kind, flags = words >> 40, words >> 32 & 255, words >> 24 & 255
            if length > MAX_FRAME:
                raise BrokenFramesError(f"a frame has more than {MAX_FRAME} bytes")
            end = block_end(data, at) if kind == HEADERS else at + HEADER + length
            if not end or end > size:
                break
            stream = (words << 8 | data[at + 8]) & _STREAM
            self._take(kind, flags, stream, data[at:end])
            at = end
        self._part = data[at:]

    def _take(self, kind: int, flags: int, stream: int, data: bytes) -> None:
        if kind == HEADERS:
            self._block(flags, stream, data)
        elif kind == PING:
            if not flags & ACK:
                self.to_client += frame(PING, ACK, 0, data[HEADER:])
        elif kind == SETTINGS and flags & ACK:
            if self.acks:
                self.acks -= 1
        elif kind == SETTINGS:
            self.settings += 1
            self.to_client += _ACK_OF_SETTINGS
            self._keep(_Kept(0, data))
        elif kind == DATA and stream in self.answered:
            self.returned += len(data) - HEADER
            if flags & END_STREAM:
                self._whole(stream)
            elif len(data) > HEADER:  # an update of 0 bytes is a protocol error
                self.to_client += window_update(stream, len(data) - HEADER)
        elif kind == RST_STREAM:
            if stream not in self.answered:
                self.finished.append(stream)
        elif stream not in self.answered and kind != GOAWAY:
            self._keep(_Kept(stream, data))
            if kind == DATA and flags & END_STREAM:
                self._streams.sent(stream)

    def _block(self, flags: int, stream: int, frames: bytes) -> None:
        block = content(frames)
        request = self._headers.known.get(block)
        changed = False
        if request is None:
            request = self._headers.read(block)
            changed = self._headers.changed
        ends = bool(flags & END_STREAM)
        if stream <= self._streams.last or not stream & 1:
            if stream in self.answered:
                self._whole(stream)
            else:
                self._keep(_Kept(stream, frames))
            return
        self._streams.last = stream
        kept = _Kept(stream, frames, opens=True, changed=changed)
        self._keep(kept)
        if request.kind is not Kind.CONTROL:
            probe = PROBE if request.kind is Kind.PROBE else 0
            self._streams.opened(stream, probe | (SENT if ends else 0))
            if self._opened(stream, request):
                return
            self._streams.ended(stream)
        self.leave_out(stream)
        self.answered[stream] = request
        if ends:
            self._whole(stream)

    def _whole(self, stream: int) -> None:
        request = self.answered.get(stream)
        if request is not None:
            self.answered[stream] = None
            self._control(stream, request)

    def _keep(self, kept: _Kept) -> None:
        self._kept.append(kept)
        self.size += len(kept.data) + _OVERHEAD

    def leave_out(self, stream: int) -> None:
        """Drop a request answered here, except for blocks that the backend's header table needs."""
        rest: list[_Kept] = []
        for kept in self._kept:
            if kept.stream != stream:
                rest.append(kept)
            elif kept.data[3] == DATA:
                self.returned += len(kept.data) - HEADER
            elif kept.changed:
                # The backend does nothing for a call without a message.
                rest.append(_Kept(0, kept.data + rst_stream(stream, CANCEL)))
                self.dead += 1
        self._kept = rest
        self.size = sum(len(kept.data) + _OVERHEAD for kept in rest)
        if stream not in self.answered:
            while len(self.answered) >= _LATE:
                del self.answered[next(iter(self.answered))]
            self.answered[stream] = None

    def replay(self, field: bytes) -> bytes:
        """Return all kept frames for the backend, with `field` added to each request."""
        return PREFACE + b"".join(
            with_field(kept.data, field) if kept.opens else kept.data for kept in self._kept
        )

    def incomplete(self) -> dict[int, Request | None]:
        """Return the incomplete requests among those to be answered here."""
        return {stream: request for stream, request in self.answered.items() if request}

    def take_part(self) -> bytes:
        """Return the beginning of an incomplete frame."""
        part, self._part = self._part, b""
        return part
