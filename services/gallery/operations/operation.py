"""A long-running operation: its request, its progress and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, TypeVar

from services.common.errors import CorralError, FieldViolation, InternalError, Resource

from .progress import Phase, Progress

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")


class Kind(Protocol[RequestT, ResultT]):
    """A kind of operation: its runner, and how the journal keeps its requests and results."""

    @property
    def name(self) -> str:
        """The kind's name in the journal and in filters, such as `install_model`."""

    async def run(self, request: RequestT, progress: Progress) -> ResultT:
        """Do the work. It may be run again after a crash, and MUST then continue or start over."""

    def encode_request(self, request: RequestT) -> Mapping[str, object]:
        """Return a request as JSON."""

    def decode_request(self, record: Mapping[str, object]) -> RequestT:
        """Return the request of a JSON object; raises ValueError if it is not one."""

    def encode_result(self, result: ResultT) -> Mapping[str, object]:
        """Return a result as JSON."""

    def decode_result(self, record: Mapping[str, object]) -> ResultT:
        """Return the result of a JSON object; raises ValueError if it is not one."""


class ErrorRecord(TypedDict):
    """An error in the journal."""

    reason: str
    message: str
    metadata: Mapping[str, str]
    retry_after: float | None
    resource: list[str] | None
    violations: list[list[str]]


class OperationRecord(TypedDict):
    """An operation in the journal."""

    name: str
    kind: str
    target: str
    request: Mapping[str, object]
    request_id: str
    create_time: float
    start_time: float | None
    update_time: float
    end_time: float | None
    phase: str
    percent: float
    bytes_done: int
    bytes_total: int
    cancel_requested: bool
    error: ErrorRecord | None
    result: Mapping[str, object] | None


@dataclass(slots=True)
class Operation:
    """One operation; only the manager changes it."""

    name: str
    kind: Kind[Any, Any]
    target: str
    request: object
    request_id: str = ""
    create_time: float = field(default_factory=time.time)
    start_time: float | None = None
    update_time: float = 0.0
    end_time: float | None = None
    error: CorralError | None = None
    result: object = None
    cancel_requested: bool = False
    progress: Progress = field(default_factory=Progress)
    ending: bool = False
    """Its end is being recorded; it does not change any more."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Count the creation as a change."""
        self.update_time = self.update_time or self.create_time

    @property
    def done(self) -> bool:
        """Whether it has succeeded or failed, and that is recorded."""
        return self.ended.is_set()

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self.progress.phase

    @property
    def order(self) -> str:
        """A key that sorts operations, the newest first."""
        return f"{10**20 - int(self.create_time * 1e6):020d}{self.name}"

    def touch(self) -> None:
        """Record the time of a change, and wake watchers."""
        self.update_time = max(time.time(), self.update_time)
        self._changed.set()
        self._changed = asyncio.Event()

    def next_change(self) -> asyncio.Event:
        """Return the event of the next change; get it before reading the state."""
        return self._changed

    def to_record(self) -> OperationRecord:
        """Return what the journal keeps."""
        return {
            "name": self.name,
            "kind": self.kind.name,
            "target": self.target,
            "request": self.kind.encode_request(self.request),
            "request_id": self.request_id,
            "create_time": self.create_time,
            "start_time": self.start_time,
            "update_time": self.update_time,
            "end_time": self.end_time,
            "phase": self.phase.value,
            "percent": self.progress.percent,
            "bytes_done": self.progress.done,
            "bytes_total": self.progress.total,
            "cancel_requested": self.cancel_requested,
            "error": _error_record(self.error) if self.error else None,
            "result": self._encoded(self.result),
        }

    @classmethod
    def from_record(cls, record: OperationRecord, kinds: Mapping[str, Kind[Any, Any]]) -> Operation:
        """Return what `to_record` was given; raises ValueError or KeyError for anything else."""
        kind = kinds[record["kind"]]
        result = record["result"]
        operation = cls(
            name=record["name"],
            kind=kind,
            target=record["target"],
            request=kind.decode_request(record["request"]),
            request_id=record["request_id"],
            create_time=record["create_time"],
            start_time=record["start_time"],
            update_time=record["update_time"],
            end_time=record["end_time"],
            error=_error(record["error"]) if record["error"] else None,
            result=None if result is None else kind.decode_result(result),
            cancel_requested=record["cancel_requested"],
        )
        operation.progress = Progress(percent=record["percent"])
        if operation.end_time is not None:
            operation.progress.restore(
                Phase(record["phase"]), record["bytes_done"], record["bytes_total"]
            )
            operation.ending = True
            operation.ended.set()
        return operation

    def end(self, phase: Phase, result: object, error: CorralError | None) -> OperationRecord:
        """Return the record of its end; once it is written, call `show_end`."""
        self.ending = True
        now = max(time.time(), self.update_time)
        return {
            **self.to_record(),
            "phase": phase.value,
            "percent": 100.0 if phase is Phase.DONE else self.progress.percent,
            "update_time": now,
            "end_time": now,
            "result": self._encoded(result),
            "error": _error_record(error) if error else None,
        }

    def _encoded(self, result: object) -> Mapping[str, object] | None:
        return None if result is None else self.kind.encode_result(result)

    def show_end(self, phase: Phase, result: object, error: CorralError | None) -> None:
        """Mark the operation as ended, and wake watchers."""
        self.progress.end(phase)
        self.result, self.error = result, error
        self.ended.set()
        self.touch()
        self.end_time = self.update_time


def _error_record(error: CorralError) -> ErrorRecord:
    about = error.resource
    return {
        "reason": error.reason,
        "message": error.message,
        "metadata": error.metadata,
        "retry_after": error.retry_after,
        "resource": [about.type, about.name, about.description] if about else None,
        "violations": [[v.field, v.description] for v in error.violations],
    }


def _error(record: ErrorRecord) -> CorralError:
    kind = _by_reason(CorralError).get(record["reason"], InternalError)
    return kind(
        record["message"],
        metadata=record["metadata"],
        retry_after=record["retry_after"],
        resource=Resource(*record["resource"]) if record["resource"] else None,
        violations=[FieldViolation(*row) for row in record["violations"]],
    )


def _by_reason(base: type[CorralError]) -> dict[str, type[CorralError]]:
    """Return the error class of each reason; the base class if subclasses share its reason."""
    found: dict[str, type[CorralError]] = {}
    for kind in base.__subclasses__():
        for reason, known in {**_by_reason(kind), kind.reason: kind}.items():
            found.setdefault(reason, known)
    return found
