"""The readers of spliced connections against frames that another implementation builds and understands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from services.loader.endpoints.backend_frames import BackendFrames, Greeting
from services.loader.endpoints.client_frames import ClientFrames
from services.loader.endpoints.header_block import BrokenFramesError
from services.loader.endpoints.http2 import MAX_FRAME, PREFACE, bearer, window_update
from services.loader.endpoints.replay_buffer import HeldFrames
from services.loader.endpoints.request_headers import HeadersError, Kind, Request, RequestHeaders
from services.loader.endpoints.streams import OpenStreams

FIELD = bearer("secret-of-the-backend")
PATHS = ("/backend.Backend/Predict", "/backend.Backend/PredictStream", "/x.Y/Z")
PROBES = ("/backend.Backend/Health", "/backend.Backend/Status", "/grpc.health.v1.Health/Check")
CONTROL = ("/backend.Backend/LoadModel", "/backend.Backend/Free")

streams = st.integers(0, 7).map(lambda number: 2 * number + 1)
noise = st.one_of(
    st.builds(lambda n: PingFrame(0, opaque_data=bytes([n]) * 8), st.integers(0, 255)),
    st.builds(lambda n: SettingsFrame(0, settings={4: n}), st.integers(0, 2**31 - 1)),
    st.builds(lambda s, n: WindowUpdateFrame(s, n), streams, st.integers(1, 2**31 - 1)),
    st.builds(lambda s: PriorityFrame(s, depends_on=0, stream_weight=7), streams),
    st.builds(lambda s, b: _unknown(s, b), streams, st.binary(max_size=40)),
)


def _unknown(stream: int, body: bytes) -> Frame:
    frame = ExtensionFrame(0xF0, stream, 255, body)
    frame.body_len = len(body)  # which it forgets
    return frame


def data(stream: int, size: int, end: bool, padding: int) -> Frame:
    flags = [*(["END_STREAM"] if end else []), *(["PADDED"] if padding else [])]
    return DataFrame(stream, b"d" * size, pad_length=padding, flags=flags)


def headers(
    stream: int, block: bytes, end: bool, cuts: int, padding: int = 0, priority: bool = False
) -> list[Frame]:
    """A header block, over `cuts` frames more than one."""
    size = len(block) // (cuts + 1) + 1
    parts = [block[at : at + size] for at in range(0, len(block), size)] or [b""]
    parts += [b""] * (cuts + 1 - len(parts))
    flags = [
        *(["END_STREAM"] if end else []),
        *(["PADDED"] if padding else []),
        *(["PRIORITY"] if priority else []),
    ]
    first = HeadersFrame(
        stream, parts[0], pad_length=padding, flags=flags, depends_on=0, stream_weight=3
    )
    frames: list[Frame] = [first, *(ContinuationFrame(stream, part) for part in parts[1:])]
    frames[-1].flags.add("END_HEADERS")
    return frames


def wire(frames: list[Frame]) -> bytes:
    return b"".join(frame.serialize() for frame in frames)


def read(wired: bytes) -> list[Frame]:
    """Parse whole frames."""
    found = []
    while wired:
        frame, length = Frame.parse_frame_header(memoryview(wired[:9]), strict=False)
        frame.parse_body(memoryview(wired[9 : 9 + length]))
        found.append(frame)
        wired = wired[9 + length :]
    return found


def pieces(wired: bytes, sizes: list[int]) -> list[bytes]:
    found, at, turn = [], 0, 0
    while at < len(wired):
        size = sizes[turn % len(sizes)]
        found.append(wired[at : at + size])
        at, turn = at + size, turn + 1
    return found


sizes = st.lists(st.one_of(st.integers(1, 20), st.integers(1, 500)), min_size=1, max_size=6)


@st.composite
def replies(draw: Any) -> list[list[Frame]]:
    """What a backend sends, in groups that stay together."""
    groups: list[list[Frame]] = []
    for _ in range(draw(st.integers(1, 12))):
        stream, kind = draw(streams), draw(st.integers(0, 5))
        if kind == 0:
            groups.append([draw(noise)])
        elif kind == 1:
            groups.append([RstStreamFrame(stream, error_code=draw(st.integers(0, 13)))])
        elif kind == 2:
            groups.append([GoAwayFrame(0, last_stream_id=stream, additional_data=b"why")])
        elif kind == 3:
            block = draw(st.binary(max_size=60))
            end, cuts = draw(st.booleans()), draw(st.integers(0, 2))
            groups.append(headers(stream, block, end, cuts, draw(st.integers(0, 5))))
        else:
            size = draw(st.integers(0, 120))
            groups.append(
                [data(stream, size, draw(st.integers(0, 3)) == 0, draw(st.integers(0, 9)))]
            )
    return groups


@settings(deadline=None)
@given(replies(), sizes)
def test_streams_end_with_the_last_byte_of_their_last_frame(
    groups: list[list[Frame]], sizes: list[int]
) -> None:
    opened = OpenStreams()
    for number in range(8):
        opened.opened(2 * number + 1, 0)
    reader = BackendFrames(opened)
    # What must be open after how many bytes, by the frames themselves.
    truth = {2 * number + 1 for number in range(8)}
    steps, at, ends = [(0, set(truth))], 0, 0
    for group in groups:
        for frame in group:
            ends_here = at + len(frame.serialize())
            if isinstance(frame, GoAwayFrame):
                # Known as soon as the number is.
                steps.append((at + 13, {one for one in truth if one <= frame.last_stream_id}))
                truth = set(steps[-1][1])
            at = ends_here
            if isinstance(frame, HeadersFrame | DataFrame) and "END_STREAM" in frame.flags:
                ends = frame.stream_id
            if isinstance(frame, RstStreamFrame):
                ends = frame.stream_id
        truth = truth - {ends}
        ends = 0
        steps.append((at, set(truth)))
    boundaries = {
        len(wire([f for group in groups[:n] for f in group])) for n in range(len(groups) + 1)
    }
    seen, count = 0, 8
    for piece in pieces(wire([frame for group in groups for frame in group]), sizes):
        count -= reader.feed(piece)
        seen += len(piece)
        assert set(opened.flags) == [state for at, state in steps if at <= seen][-1]
        assert count == len(opened.flags) == opened.calls
        assert reader.at_boundary == (seen in boundaries)
    assert set(opened.flags) == truth


@dataclass
class Sent:
    """What a client sends, and what of it a backend must see."""

    frames: list[Frame] = field(default_factory=list)
    calls: dict[int, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    """The fields of each request that the backend gets."""
    control: list[tuple[int, str]] = field(default_factory=list)
    data: dict[int, int] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)


@st.composite
def requests(draw: Any) -> Sent:
    encoder = Encoder()
    sent = Sent()
    number, alive = 1, []
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.integers(0, 4))
        if kind <= 1:
            path = draw(st.sampled_from((*PATHS, *PATHS, *PROBES, *CONTROL)))
            extra = draw(st.sampled_from(("", "a", "b", "x" * 90, "y" * 500)))
            fields = [(":method", "POST"), (":path", path), ("te", "trailers")]
            fields += [("extra", extra)] if extra else []
            if draw(st.integers(0, 9)) == 0:
                encoder.header_table_size = draw(st.sampled_from((0, 100, 4096)))
            block = encoder.encode(fields, huffman=draw(st.booleans()))
            if draw(st.booleans()):
                encoder.header_table_size = encoder.header_table_size
            end = draw(st.booleans())
            sent.frames += headers(
                number,
                block,
                end,
                draw(st.integers(0, 2)) or (1 if len(block) > MAX_FRAME else 0),
                draw(st.integers(0, 3)),
                draw(st.booleans()),
            )
            if path in CONTROL:
                if end:
                    sent.control.append((number, path))
                else:
                    alive.append((number, path))
            else:
                sent.calls[number] = [(n.encode(), v.encode()) for n, v in fields]
                sent.open.add(number)
                if not end:
                    alive.append((number, path))
            number += draw(st.sampled_from((2, 2, 4)))
        elif kind == 2 and alive:
            stream, path = alive[draw(st.integers(0, len(alive) - 1))]
            end = draw(st.booleans())
            size, padding = draw(st.integers(0, 120)), draw(st.integers(0, 5))
            sent.frames.append(data(stream, size, end, padding))
            if path not in CONTROL:
                sent.data[stream] = sent.data.get(stream, 0) + size
            if end:
                alive.remove((stream, path))
                if path in CONTROL:
                    sent.control.append((stream, path))
        elif kind == 3 and alive:
            stream, path = alive.pop(draw(st.integers(0, len(alive) - 1)))
            sent.frames.append(RstStreamFrame(stream, error_code=8))
            sent.open.discard(stream)
        else:
            frame = draw(noise)
            if isinstance(frame, WindowUpdateFrame | PriorityFrame | ExtensionFrame):
                frame.stream_id = 0 if not isinstance(frame, PriorityFrame) else 1
            sent.frames.append(frame)
    return sent


def understood(
    wired: bytes,
) -> tuple[dict[int, list[tuple[bytes, bytes]]], dict[int, int], set[int]]:
    """What a backend makes of it: requests by stream, bytes of data, streams that were reset."""
    decoder = Decoder(max_header_list_size=2**20)
    decoder.max_allowed_table_size = 2**16
    found: dict[int, list[tuple[bytes, bytes]]] = {}
    amounts: dict[int, int] = {}
    reset = set()
    block, stream = b"", 0
    for frame in read(wired):
        if isinstance(frame, HeadersFrame | ContinuationFrame):
            assert frame.body_len <= MAX_FRAME
            block, stream = block + frame.data, frame.stream_id
            if "END_HEADERS" in frame.flags:
                found[stream] = [(bytes(n), bytes(v)) for n, v in decoder.decode(block, raw=True)]
                block = b""
        elif isinstance(frame, DataFrame):
            amounts[frame.stream_id] = amounts.get(frame.stream_id, 0) + len(frame.data)
        elif isinstance(frame, RstStreamFrame):
            reset.add(frame.stream_id)
    return found, amounts, reset


TOKEN = (b"authorization", b"Bearer secret-of-the-backend")


@settings(deadline=None)
@given(requests(), sizes)
def test_each_request_gets_the_token_and_the_rest_is_as_it_was(
    sent: Sent, sizes: list[int]
) -> None:
    opened, control = OpenStreams(), []
    reader = ClientFrames(
        opened,
        RequestHeaders(),
        FIELD,
        acks=0,
        answered={},
        control=lambda stream, request: control.append((stream, request.path)),
    )
    calls, out = 0, b""
    for piece in pieces(wire(sent.frames), sizes):
        before = opened.calls
        out += reader.feed(piece)
        calls += opened.calls - before
        assert calls == opened.calls
    found, amounts, reset = understood(out)
    assert control == sent.control
    for stream, fields in found.items():
        if stream in sent.calls:
            assert fields == [*sent.calls[stream], TOKEN]
        else:
            assert stream in reset  # only for the header table
    assert set(sent.calls) <= set(found)
    assert amounts == sent.data
    assert set(opened.flags) == sent.open


@settings(deadline=None)
@given(requests(), sizes, st.data())
def test_what_is_held_reaches_the_backend_later(sent: Sent, sizes: list[int], data: Any) -> None:
    opened, control, waiting = OpenStreams(), [], []

    def taken(stream: int, request: Request) -> bool:
        waiting.append(stream)
        return request.kind is Kind.CALL

    held = HeldFrames(
        opened,
        RequestHeaders(),
        opened=taken,
        control=lambda stream, request: control.append((stream, request.path)),
    )
    gone = set()
    for piece in pieces(PREFACE + wire(sent.frames), sizes):
        held.feed(piece)
        for stream in held.finished:
            opened.ended(stream)
            held.leave_out(stream)
            gone.add(stream)
        held.finished.clear()
    assert waiting == list(sent.calls)
    refused = set(data.draw(st.lists(st.sampled_from(waiting), unique=True))) if waiting else set()
    for stream in refused:
        opened.ended(stream)
        held.leave_out(stream)
    out = held.replay(FIELD)
    assert out.startswith(PREFACE)
    found, amounts, reset = understood(out[len(PREFACE) :])
    for stream, fields in found.items():
        if stream in opened.flags:
            assert fields == [*sent.calls[stream], TOKEN]
        else:
            assert stream in reset and stream not in amounts
    assert set(opened.flags) == {
        stream
        for stream, fields in sent.calls.items()
        if stream not in refused | gone and dict(fields)[b":path"].decode() not in PROBES
    }
    pings = [frame for frame in read(bytes(held.to_client)) if isinstance(frame, PingFrame)]
    assert len(pings) == sum(isinstance(frame, PingFrame) for frame in sent.frames)
    assert held.settings == sum(isinstance(frame, SettingsFrame) for frame in sent.frames)


def test_acknowledgements_are_left_out_once() -> None:
    ack = SettingsFrame(0, flags=["ACK"]).serialize()
    settings = SettingsFrame(0, settings={3: 7}).serialize()
    greeting = Greeting(2)
    stream = settings + ack + data(1, 5, False, 0).serialize() + ack
    out = b"".join(greeting.feed(bytes([byte])) for byte in stream)
    assert out == settings + data(1, 5, False, 0).serialize() and not greeting.acks
    reader = ClientFrames(
        OpenStreams(), RequestHeaders(), b"", acks=1, answered={}, control=lambda *_: None
    )
    assert b"".join(reader.feed(bytes([byte])) for byte in ack + settings + ack) == settings + ack


def test_dropped_data_are_given_back_to_the_window() -> None:
    opened = OpenStreams()
    held = HeldFrames(opened, RequestHeaders(), opened=lambda *_: True, control=lambda *_: None)
    block = Encoder().encode([(":path", PATHS[0])])
    late = data(1, 40, True, 0)
    held.feed(PREFACE + wire([*headers(1, block, False, 0), data(1, 30, False, 5)]))
    opened.ended(1)
    held.leave_out(1)
    assert held.returned == 30 + 6  # the padding and its length count, RFC 9113, section 6.1
    held.feed(late.serialize())
    assert held.returned == 36 + 40


def test_streams_above_the_backends_goodbye_do_not_count() -> None:
    opened = OpenStreams()
    reader = ClientFrames(
        opened, RequestHeaders(), FIELD, acks=0, answered={}, control=lambda *_: None
    )
    block = Encoder().encode([(":path", "/x.Y/Z")])
    reader.feed(wire(headers(1, block, True, 0)))
    replies = BackendFrames(opened)
    replies.feed(GoAwayFrame(0, last_stream_id=1).serialize())
    late = wire(headers(3, block, True, 0))
    assert reader.feed(late) == late
    assert opened.calls == 1 and set(opened.flags) == {1}


def test_a_larger_table_needs_the_backends_leave() -> None:
    encoder = Encoder()
    encoder.header_table_size = 65536
    block = encoder.encode([(":path", PATHS[0])])
    with pytest.raises(HeadersError):
        RequestHeaders().read(block)
    spliced = RequestHeaders()
    spliced.allow_any_table()
    assert spliced.read(block).path == PATHS[0]


def test_streams_after_the_goodbye_go_nowhere() -> None:
    opened = OpenStreams()
    reader = ClientFrames(
        opened, RequestHeaders(), FIELD, acks=0, answered={}, control=lambda *_: None
    )
    block = Encoder().encode([(":path", PATHS[0])])
    reader.feed(wire(headers(1, block, False, 0)))
    reader.close()
    late = wire([*headers(3, block, False, 0), data(3, 10, True, 0)])
    own = wire([data(1, 4, True, 0)])
    assert b"".join(reader.feed(bytes([byte])) for byte in late + own) == own
    assert opened.calls == 1
    assert reader.to_client == window_update(0, 10) + window_update(3, 10)


@pytest.mark.parametrize("wired", [b"GET / HTTP/1.1\r\n\r\n" * 2, PREFACE + b"\xff" * 40])
def test_what_is_no_http2_is_refused(wired: bytes) -> None:
    held = HeldFrames(
        OpenStreams(), RequestHeaders(), opened=lambda *_: True, control=lambda *_: None
    )
    with pytest.raises(BrokenFramesError):
        held.feed(wired)
