"""Records of finished calls, their observers, and the access log."""

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
    """The name of the gRPC status code sent to the client, or that would have been."""
    duration: float
    """Seconds that the handler took, from the first request to the last response."""
    peer: str
    request_id: str
    messages_in: int
    messages_out: int


class CallObserver(Protocol):
    """Is called with every finished call. It must be quick and must not raise."""

    def call_ended(self, record: CallRecord) -> None:
        """Called when a call has ended."""


class CallAccounts:
    """Passes each finished call to the observers."""

    def __init__(self, service: str, observers: Sequence[CallObserver] = ()) -> None:
        """`service` is named in the log; `observers` are called in this order."""
        self._service = service
        self._observers = tuple(observers)
        self._complained: set[int] = set()

    def ended(self, record: CallRecord) -> None:
        """Call the observers with a finished call. Never fails."""
        for observer in self._observers:
            try:
                observer.call_ended(record)
            except Exception:  # noqa: BLE001 - a faulty observer must not fail the call
                # Once per observer: otherwise a broken one would add a line to the log for every call.
                if id(observer) not in self._complained:
                    self._complained.add(id(observer))
                    _log.exception(
                        "call observer failed", of=self._service, observer=type(observer).__name__
                    )


PROBES: Final = ("/grpc.health.", "/grpc.reflection.", "/grpc.channelz.")

# Services report their calls twice a second; a line for each would hide all others.
_QUIET: Final = (*PROBES, "/corral.metrics.v1.MetricsService/Observe")

# Caused by the client, or normal: no reason for an operator to look at.
_EXPECTED: Final = frozenset(
    {"OK", "CANCELLED", "NOT_FOUND", "ALREADY_EXISTS", "INVALID_ARGUMENT", "OUT_OF_RANGE"}
)
_BROKEN: Final = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})


class AccessLog:
    """Logs a line for each call: at debug for probes, at warning or error for failures."""

    def __init__(self) -> None:
        """Log as `corral.access`."""
        # Bound once: looking up the logger for each call costs more than a line that is filtered out.
        self._log: Any = get_logger("corral.access").bind()
        self._wanted: bool = self._log.is_enabled_for(logging.INFO)

    def call_ended(self, record: CallRecord) -> None:
        """Log a finished call."""
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
