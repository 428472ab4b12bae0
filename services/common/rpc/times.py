"""Between seconds and the protos' Timestamp and Duration."""

from __future__ import annotations

from typing import overload

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


@overload
def timestamp(seconds: float) -> Timestamp: ...
@overload
def timestamp(seconds: float | None) -> Timestamp | None: ...
def timestamp(seconds: float | None) -> Timestamp | None:
    """Return a Timestamp for seconds since the epoch, in whole microseconds; None for None.

    A float of today's seconds has no more digits: nanoseconds would be made up.
    """
    if seconds is None:
        return None
    message = Timestamp()
    message.FromMicroseconds(round(seconds * 1e6))
    return message


@overload
def duration(seconds: float) -> Duration: ...
@overload
def duration(seconds: float | None) -> Duration | None: ...
def duration(seconds: float | None) -> Duration | None:
    """Return a Duration of this many seconds; None for None."""
    if seconds is None:
        return None
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def in_seconds(message: Timestamp | Duration) -> float:
    """Return a message's seconds, since the epoch or of a length."""
    return message.seconds + message.nanos / 1e9
