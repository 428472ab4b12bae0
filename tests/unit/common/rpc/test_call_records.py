import pytest
from structlog.testing import capture_logs

from services.common.rpc.call_records import AccessLog, CallAccounts, CallRecord

RECORD = CallRecord("/a.B/C", "unary_unary", "OK", 0.0012345, "peer", "id", 1, 1)


class Broken:
    def call_ended(self, record: CallRecord) -> None:
        raise ValueError("x")


class Kept(list[CallRecord]):
    def call_ended(self, record: CallRecord) -> None:
        self.append(record)


def test_a_broken_observer_is_logged_once_and_the_others_are_called() -> None:
    kept = Kept()
    accounts = CallAccounts("loader", (Broken(), kept))
    with capture_logs() as logs:
        accounts.ended(RECORD)
        accounts.ended(RECORD)
    assert kept == [RECORD, RECORD]
    assert [(line["observer"], line["of"]) for line in logs] == [("Broken", "loader")]


@pytest.mark.parametrize(
    ("method", "code", "level"),
    [
        ("/a.B/C", "OK", "info"),
        ("/a.B/C", "NOT_FOUND", "info"),
        ("/a.B/C", "UNAVAILABLE", "warning"),
        ("/a.B/C", "INTERNAL", "error"),
        ("/grpc.health.v1.Health/Check", "OK", "debug"),
        ("/corral.metrics.v1.MetricsService/ObserveApiCalls", "OK", "debug"),
    ],
)
def test_the_level_of_a_line(method: str, code: str, level: str) -> None:
    with capture_logs() as logs:
        log = AccessLog()
        log.call_ended(RECORD._replace(method=method, code=code))
    (line,) = logs
    assert (line["log_level"], line["ms"]) == (level, 1.234)
