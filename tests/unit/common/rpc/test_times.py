from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.rpc.times import duration, in_seconds, timestamp


def test_seconds_become_messages_and_come_back() -> None:
    assert timestamp(1.5) == Timestamp(seconds=1, nanos=500_000_000)
    assert duration(-1.5) == Duration(seconds=-1, nanos=-500_000_000)
    assert in_seconds(Timestamp(seconds=1, nanos=500_000_000)) == 1.5
    assert in_seconds(Duration(seconds=-1, nanos=-500_000_000)) == -1.5


def test_timestamps_have_no_more_digits_than_a_float_of_seconds() -> None:
    assert timestamp(1_790_000_000.123_456_7).nanos == 123_457_000


def test_nanoseconds_are_rounded() -> None:
    assert duration(0.3).nanos == 300_000_000
    assert duration(1.1).nanos == 100_000_000


def test_no_time_becomes_no_message() -> None:
    assert timestamp(None) is None
    assert duration(None) is None
