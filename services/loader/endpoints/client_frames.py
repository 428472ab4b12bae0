"""Follows a spliced connection's frames from client to backend, and changes as little as possible.

Each request gets the backend's token as an extra header field at the end of its header block. Frames
of streams that do not go to the backend (refused, or answered here) are removed. The rest is
unchanged.
"""

from __future__ import annotations

from collections.abc import Callable

from .header_block import LARGEST, BrokenFramesError, block_end, content, with_field
from .http2 import (
    ACK,
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    SHORT_HEADER,
    WINDOW_UPDATE,
    rst_stream,
    window_update,
)
from .request_headers import Kind, Request, RequestHeaders
from .streams import PROBE, SENT, OpenStreams

_head = SHORT_HEADER.unpack_from
_pack = SHORT_HEADER.pack
_STREAM = 0x7FFFFFFF
_UPDATE = b"\0\0\4\x08"
_WHOLE = END_HEADERS | END_STREAM
_KEPT = 64
"""Streams answered here, remembered since late frames may still arrive for them."""


class ClientFrames:
    """The client's side of a spliced connection."""

    __slots__ = (
        "_added",
        "_control",
        "_field",
        "_headers",
        "_part",
        "_skip",
        "_skip_stops",
        "_streams",
        "_watches",
        "acks",
        "answered",
        "closed",
        "finished",
        "to_client",
    )

    def __init__(
        self,
        streams: OpenStreams,
        headers: RequestHeaders,
        field: bytes,
        *,
        acks: int,
        answered: dict[int, Request | None],
        control: Callable[[int, Request], None],
    ) -> None:
        """Add `field` to each request, and leave out the first `acks` acknowledgements of SETTINGS.

        `answered` has the streams whose frames are not passed on. If a stream has a request there,
        `control` is called once the whole request is here, to answer it.
        """
        self._streams = streams
        self._headers = headers
        self._field = field
        self._added = len(field) << 8
        headers.add_field(field)
        self._control = control
        self._part = b""
        """The beginning of a frame that is parsed once complete."""
        self._skip = 0
        """Bytes of the current DATA frame that are still to come."""
        self._skip_stops = False
        self.acks = acks
        self.answered = answered
        self.closed = False
        """Whether a GOAWAY was sent to the client."""
        self._watches = bool(answered)
        self.to_client = bytearray()
        """WINDOW_UPDATE frames for removed DATA, for the caller to send to the client."""
        self.finished = 0
        """Calls that the client reset in the last `feed`."""

    def close(self) -> None:
        """Remove streams opened from now on; the client gets a GOAWAY."""
        self.closed = self._watches = True

    def feed(self, data: bytes) -> bytes:
        """Return the bytes that go to the backend for the next piece of `data`.

        Raises HeadersError or BrokenFramesError if the frames can no longer be followed.
        """
        self.finished = 0
        if self._part:
            data = self._part + data
            self._part = b""
        size = len(data)
        at = self._skip
        start = 0
        stops = False
        if at:
            if self._skip_stops:
                start = min(at, size)
            if at > size:
                self._skip = at - size
                return data[start:]
            self._skip = 0
        pieces: list[bytes] = []
        last = size - HEADER
        calls = self._headers.calls
        streams = self._streams
        opened = streams.flags
        watches = self._watches
        while at <= last:
            sized, flags, stream = _head(data, at)
            end = at + HEADER + (sized >> 8)
            kind = sized & 255
            if not watches:
                if kind == DATA:
                    if flags & END_STREAM and stream in opened:
                        opened[stream] |= SENT
                    at = end
                    continue
                if kind == WINDOW_UPDATE:
                    at = end
                    continue
                if kind == HEADERS and flags | END_STREAM == _WHOLE and end <= size:
                    block = data[at + HEADER : end]
                    onward = calls.get(block)
                    if onward is not None and streams.limit >= stream > streams.last:
                        # Nearly every call: a known block that needs no special treatment.
                        streams.last = stream
                        opened[stream] = SENT if flags & END_STREAM else 0
                        streams.calls += 1
                        if onward is not block:
                            head = _pack(sized + self._added, flags, stream)
                            pieces += (data[start:at], head, onward)
                            start = end
                        if data.startswith(_UPDATE, end):
                            end += HEADER + 4
                        at = end
                        continue
            stream &= _STREAM
            if kind == DATA:
                stops = self._stops(stream)
                if stops:
                    pieces.append(data[start:at])
                    start = min(end, size)
                    if length := sized >> 8:
                        self.to_client += window_update(0, length) + window_update(stream, length)
                    if flags & END_STREAM:
                        self._whole(stream)
                elif flags & END_STREAM and stream in opened:
                    opened[stream] |= SENT
                at = end
                continue
            if end > size:
                if end - at - HEADER > LARGEST:
                    raise BrokenFramesError("a control frame is longer than any may be")
                break
            if kind == HEADERS:
                end = block_end(data, at)
                if not end:
                    break
                pieces += (data[start:at], self._block(stream, flags, data[at:end]))
                start = end
                watches = self._watches
            elif kind == RST_STREAM:
                if self._stops(stream):
                    self.answered.pop(stream, None)
                    pieces.append(data[start:at])
                    start = end
                else:
                    self.finished += streams.ended(stream)
            elif kind == SETTINGS:
                if flags & ACK and self.acks:
                    self.acks -= 1
                    pieces.append(data[start:at])
                    start = end
            elif watches and self._stops(stream):
                pieces.append(data[start:at])
                start = end
            at = end
        self._skip_stops = stops
        if at > size:
            self._skip = at - size
            rest = data[start:]
        else:
            self._part = data[at:]
            rest = data[start:at]
        if not pieces:
            return rest
        pieces.append(rest)
        return b"".join(pieces)

    def _stops(self, stream: int) -> bool:
        return stream in self.answered or (self.closed and stream > self._streams.last)

    def _whole(self, stream: int) -> None:
        """Called when a request that does not go to the backend is complete."""
        request = self.answered.get(stream)
        if request is not None:
            self.answered[stream] = None
            self._control(stream, request)

    def _block(self, stream: int, flags: int, frames: bytes) -> bytes:
        """Return the bytes that go to the backend for a complete header block of any kind."""
        block = content(frames)
        request = self._headers.known.get(block)
        changed = False
        if request is None:
            request = self._headers.read(block)
            changed = self._headers.changed
        if self.closed and stream > self._streams.last:
            return b""
        ends = bool(flags & END_STREAM)
        if stream <= self._streams.last or not stream & 1:
            if stream in self.answered:
                self._whole(stream)
                return b""
            if ends:
                self._streams.sent(stream)
            return frames  # trailers or a late frame: the backend handles both
        self._streams.last = stream
        if stream > self._streams.limit:
            return frames  # the backend's GOAWAY already refused it
        if request.kind is Kind.CONTROL:
            while len(self.answered) >= _KEPT:
                del self.answered[next(iter(self.answered))]
            self.answered[stream] = request
            self._watches = True
            if ends:
                self._whole(stream)
            # The backend's header table must follow the client's; a call without a message does nothing.
            return frames + rst_stream(stream, CANCEL) if changed else b""
        probe = PROBE if request.kind is Kind.PROBE else 0
        self._streams.opened(stream, probe | (SENT if ends else 0))
        return with_field(frames, self._field)
