"""The table of errors and gRPC status codes, and the conversion in both directions.

A status is sent as `google.rpc.Status` in the trailing metadata `grpc-status-details-bin`, as every
gRPC library understands it: ErrorInfo (domain `corral`), RetryInfo, ResourceInfo, BadRequest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import (
    code_pb2,
    error_details_pb2,
    status_pb2,
)

from services.common import errors
from services.common.errors import CorralError, FieldViolation, Resource

from .times import duration, in_seconds

DOMAIN: Final = "corral"
DETAILS_KEY: Final = "grpc-status-details-bin"
INTERNAL_TEXT: Final = (
    "internal error; the service's log has the details under this call's request id"
)

_C = grpc.StatusCode
CODES: Final[Mapping[type[CorralError], grpc.StatusCode]] = {
    errors.InvalidRequestError: _C.INVALID_ARGUMENT,
    errors.ModelNotNamedError: _C.INVALID_ARGUMENT,
    errors.PathEscapeError: _C.INVALID_ARGUMENT,
    errors.UnsupportedSourceError: _C.INVALID_ARGUMENT,
    errors.ModelConfigError: _C.FAILED_PRECONDITION,
    errors.ModelNotFoundError: _C.NOT_FOUND,
    errors.ModelNotLoadedError: _C.FAILED_PRECONDITION,
    errors.ModelDisabledError: _C.FAILED_PRECONDITION,
    errors.ModelBusyError: _C.FAILED_PRECONDITION,
    errors.BackendNotFoundError: _C.NOT_FOUND,
    errors.BackendStartError: _C.FAILED_PRECONDITION,
    errors.BackendNotReadyError: _C.UNAVAILABLE,
    errors.ModelLoadError: _C.FAILED_PRECONDITION,
    errors.BackendCrashedError: _C.UNAVAILABLE,
    errors.ModelUnloadedError: _C.UNAVAILABLE,
    errors.LoadBackoffError: _C.UNAVAILABLE,
    errors.CrashLoopError: _C.UNAVAILABLE,
    errors.NoRoomError: _C.RESOURCE_EXHAUSTED,
    errors.QueueFullError: _C.RESOURCE_EXHAUSTED,
    errors.DeadlineTooShortError: _C.RESOURCE_EXHAUSTED,
    errors.LeaseNotFoundError: _C.NOT_FOUND,
    errors.TooManyLeasesError: _C.RESOURCE_EXHAUSTED,
    errors.MessageTooLargeError: _C.RESOURCE_EXHAUSTED,
    errors.ControlPlaneOnlyError: _C.FAILED_PRECONDITION,
    errors.ShuttingDownError: _C.UNAVAILABLE,
    errors.NotImplementedYetError: _C.UNIMPLEMENTED,
    errors.EntryNotFoundError: _C.NOT_FOUND,
    errors.GalleryNotFoundError: _C.NOT_FOUND,
    errors.GalleryUnavailableError: _C.UNAVAILABLE,
    errors.NothingToInstallError: _C.FAILED_PRECONDITION,
    errors.OperationNotFoundError: _C.NOT_FOUND,
    errors.OperationCancelledError: _C.CANCELLED,
    errors.DigestMismatchError: _C.DATA_LOSS,
    errors.DownloadError: _C.UNAVAILABLE,
    errors.SourceNotFoundError: _C.NOT_FOUND,
    errors.AccessDeniedError: _C.PERMISSION_DENIED,
    errors.DiskFullError: _C.RESOURCE_EXHAUSTED,
    errors.ConflictError: _C.FAILED_PRECONDITION,
    errors.ServiceUnreachableError: _C.UNAVAILABLE,
    errors.DeadlineError: _C.DEADLINE_EXCEEDED,
    # Normally keeps the code of the other server.
    errors.UnknownRemoteError: _C.UNKNOWN,
    errors.InternalError: _C.INTERNAL,
}
_BY_REASON: Final = {cls.reason: cls for cls in CODES}

# A client drops a response whose headers and trailers exceed 8 KiB (gRPC's soft limit on metadata),
# and reports RESOURCE_EXHAUSTED instead of the error. So the total is kept below that: the message is
# sent twice (percent-encoded, and as base64 in the details), the details once.
_MESSAGE_BYTES: Final = 1536
_MESSAGE_ENCODED: Final = 3072
_DETAILS_BYTES: Final = 1536


def status_code(error: BaseException) -> grpc.StatusCode:
    """Return the status code of an error: from the table, or INTERNAL."""
    if isinstance(error, errors.UnknownRemoteError):
        return _code_named(error.code)
    for cls in type(error).__mro__:
        if cls in CODES:
            return CODES[cls]
    return _C.INTERNAL


def to_status(error: BaseException) -> status_pb2.Status:
    """Return the status of an error; INTERNAL without details for an error that is not a CorralError."""
    known = error if isinstance(error, CorralError) else errors.InternalError(INTERNAL_TEXT)
    status = status_pb2.Status(
        code=status_code(known).value[0],
        message=shorten(known.message, _MESSAGE_BYTES, _MESSAGE_ENCODED),
    )
    room = _DETAILS_BYTES
    for detail in _details(known):
        # A detail that is too large is left out: half of one would mislead a program.
        if (size := detail.ByteSize()) <= room:
            room -= size
            status.details.add().Pack(detail)
    return status


def trailing_metadata(status: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata that carries the status and its details."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def from_rpc_error(error: grpc.RpcError | grpc.aio.AioRpcError) -> CorralError:
    """Return the error that the other side raised, or the closest known one."""
    code = error.code() if hasattr(error, "code") else _C.UNKNOWN
    text = (error.details() if hasattr(error, "details") else None) or ""
    for key, value in _trailers(error):
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    if code is _C.UNAVAILABLE:
        return errors.ServiceUnreachableError(text or "the service cannot be reached")
    if code is _C.DEADLINE_EXCEEDED:
        return errors.DeadlineError(text or "the call took longer than its deadline")
    return errors.UnknownRemoteError(text or code.name, code=code.name)


def from_status(status: status_pb2.Status) -> CorralError:
    """Return the error that `to_status` converted, as far as the status contains it."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    about = error_details_pb2.ResourceInfo()
    bad = error_details_pb2.BadRequest()
    retry_after: float | None = None
    resource: Resource | None = None
    for detail in status.details:
        try:
            if detail.Unpack(retry):
                retry_after = in_seconds(retry.retry_delay)
            elif detail.Unpack(about):
                resource = Resource(about.resource_type, about.resource_name, about.description)
            else:
                _ = detail.Unpack(info) or detail.Unpack(bad)
        except DecodeError:
            continue
    metadata = dict(info.metadata)
    facts: dict[str, Any] = {
        "retry_after": retry_after,
        "resource": resource,
        "violations": [FieldViolation(v.field, v.description) for v in bad.field_violations],
    }
    code = _code_numbered(status.code)
    cls = _BY_REASON.get(info.reason) if info.domain == DOMAIN else None
    if cls is not None and cls is not errors.UnknownRemoteError:
        return cls(status.message, metadata=metadata, **facts)
    if cls is None and info.reason:
        metadata.setdefault("remote_reason", info.reason)
    return errors.UnknownRemoteError(
        status.message or code.name, code=code.name, metadata=metadata, **facts
    )


def shorten(text: str, limit: int, encoded_limit: int | None = None) -> str:
    """Cut a text to `limit` bytes of UTF-8 (and of percent-encoding, as gRPC sends messages)."""
    # A lone surrogate (from an undecodable file name) has no UTF-8 form, and protobuf refuses it.
    data = text.encode("utf-8", "replace")
    text = data.decode()
    room = 3 * limit if encoded_limit is None else encoded_limit
    if len(data) <= limit and sum(map(_encoded, data)) <= room:
        return text
    # Minus the ellipsis: 3 bytes, each percent-encoded.
    limit, room = limit - 3, room - 9
    for index, char in enumerate(text):
        raw = char.encode()
        limit -= len(raw)
        room -= sum(map(_encoded, raw))
        if limit < 0 or room < 0:
            return text[:index] + "…"
    return text


def _encoded(byte: int) -> int:
    """Return how many bytes gRPC sends for a byte of a message: 1 for printable ASCII except "%"."""
    return 1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3


def _details(error: CorralError) -> Iterator[Any]:
    yield error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={key: shorten(value, 512) for key, value in error.metadata.items()},
    )
    if error.retry_after is not None:
        yield error_details_pb2.RetryInfo(retry_delay=duration(max(error.retry_after, 0.0)))
    if error.resource is not None:
        yield error_details_pb2.ResourceInfo(
            resource_type=error.resource.type,
            resource_name=error.resource.name,
            description=error.resource.description,
        )
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(field=violation.field, description=violation.description)
        yield bad


def _trailers(error: grpc.RpcError) -> Iterator[tuple[str, str | bytes]]:
    trailers: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    yield from trailers or ()


def _code_named(name: str) -> grpc.StatusCode:
    code = _C.__members__.get(name, _C.UNKNOWN)
    return _C.UNKNOWN if code is _C.OK else code


def _code_numbered(number: int) -> grpc.StatusCode:
    try:
        return _code_named(code_pb2.Code.Name(number))
    except ValueError:
        return _C.UNKNOWN
