"""What is known of a call after its end, and who wants to know it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from services.common.process.logging import get_logger

_log = get_logger(__name__)


class CallRecord(NamedTuple):
    """One finished RPC."""

    method: str
    """`/package.Service/Method`."""
    kind: str
    """`unary_unary`, `unary_stream`, `stream_unary` or `stream_stream`."""
    code: str
    """The name of the gRPC status code that the client was sent, or would have been."""
    duration: float
    """Seconds that the handler took, from the first request to the last response."""
    peer: str
    request_id: str
    messages_in: int
    messages_out: int


class CallObserver(Protocol):
    """Is told of every call that ended. It must be quick, and it must not raise."""

    def call_ended(self, record: CallRecord) -> None:
        """Take note of one finished call."""


class CallAccounts:
    """Tells the observers of each call that ended."""

    def __init__(self, service: str, observers: Sequence[CallObserver] = ()) -> None:
        """Tell of the calls of `service`, to the observers in their order."""
        self._service = service
        self._observers = tuple(observers)
        self._complained: set[int] = set()

    def ended(self, record: CallRecord) -> None:
        """Tell of one call. Never fails."""
        for observer in self._observers:
            try:
                observer.call_ended(record)
            except Exception:  # noqa: BLE001 - an observer's fault is none of the call's
                # Once for each observer: a broken one would else fill the log at the rate of calls.
                if id(observer) not in self._complained:
                    self._complained.add(id(observer))
                    _log.exception(
                        "call observer failed", of=self._service, observer=type(observer).__name__
                    )


PROBES: Final = ("/grpc.health.", "/grpc.reflection.", "/grpc.channelz.")

# Services report their calls twice a second; a line for each would drown all others.
_QUIET: Final = (*PROBES, "/corral.metrics.v1.MetricsService/Observe")

# What the caller did, or was told to wait for: nothing that an operator must look at.
_EXPECTED: Final = frozenset(
    {"OK", "CANCELLED", "NOT_FOUND", "ALREADY_EXISTS", "INVALID_ARGUMENT", "OUT_OF_RANGE"}
)
_BROKEN: Final = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})


class AccessLog:
    """One log line for each call: debug for probes, warning or error when it failed."""

    def __init__(self) -> None:
        """Log under the name `access`."""
        # Bound once: to find the logger anew for each call costs more than a line that is not wanted.
        self._log: Any = get_logger("corral.access").bind()
        self._wanted: bool = self._log.is_enabled_for(logging.INFO)

    def call_ended(self, record: CallRecord) -> None:
        """Write the line."""
        if not self._wanted and record.code in _EXPECTED:
            return
        write = self._log.info
        if record.code in _BROKEN:
            write = self._log.error
        elif record.code not in _EXPECTED:
            write = self._log.warning
        elif record.method.startswith(_QUIET):
            write = self._log.debug
        write(
            "call",
            method=record.method,
            kind=record.kind,
            code=record.code,
            ms=round(record.duration * 1000, 3),
            peer=record.peer,
            request_id=record.request_id,
            messages_in=record.messages_in,
            messages_out=record.messages_out,
        )
