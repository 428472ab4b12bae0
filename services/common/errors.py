"""One exception for each kind of error, without transport: `rpc/status.py` maps them to gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class Resource:
    """The thing an error is about, for example `Resource("model", "llama-3")`."""

    type: str
    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A wrong field of a request, and what is wrong with it."""

    field: str
    description: str


class CorralError(Exception):
    """Base of every error that clients see.

    The message is public: the problem and its remedy. `reason` is stable: clients may match on it, so
    a value is never reused or renamed.
    """

    reason: ClassVar[str] = "CORRAL_ERROR"

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        resource: Resource | None = None,
        violations: Sequence[FieldViolation] = (),
    ) -> None:
        """`message` is for people; the rest is for programs.

        `metadata` goes into ErrorInfo, `retry_after` (seconds) into RetryInfo, `resource` into
        ResourceInfo and `violations` into BadRequest.
        """
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after = retry_after
        self.resource = resource
        self.violations = tuple(violations)

    def __str__(self) -> str:
        """Return the public message."""
        return self.message


# The request itself


class InvalidRequestError(CorralError):
    """A field of the request is missing, malformed, or contradicts another."""

    reason = "INVALID_REQUEST"

    @classmethod
    def of(cls, field: str, description: str) -> Self:
        """Return the error for one field; its message is `<field>: <description>`."""
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)])


class ModelNotNamedError(CorralError):
    """The call names no model, and there is more than one."""

    reason = "MODEL_NOT_NAMED"


class PathEscapeError(CorralError):
    """A path leads outside the folder that it must stay in."""

    reason = "PATH_ESCAPES_FOLDER"


class UnsupportedSourceError(CorralError):
    """The scheme of a download URI is not supported."""

    reason = "UNSUPPORTED_SOURCE"


class MessageTooLargeError(CorralError):
    """A message of a call exceeds the server's limit."""

    reason = "MESSAGE_TOO_LARGE"

    @classmethod
    def of(cls, side: str, size: int, limit: int) -> Self:
        """`side` is `request` or `response`; `size` and `limit` are in bytes."""
        return cls(
            f"the {side} message is {size:,} bytes, and {limit:,} are the most that is passed on: send"
            " less at once, or raise --max-message-size",
            metadata={
                "side": side,
                "size": str(size),
                "limit": str(limit),
                "setting": "max_message_size",
            },
        )


class ControlPlaneOnlyError(CorralError):
    """The data plane received a request that only the control plane may serve."""

    reason = "CONTROL_PLANE_ONLY"


class NotImplementedYetError(CorralError):
    """The RPC is in the contract, but not implemented yet."""

    reason = "NOT_IMPLEMENTED"

    @classmethod
    def of(cls, method: str) -> Self:
        """Return the error for an RPC."""
        return cls(f"{method} is not implemented yet", metadata={"method": method})


# Models and backends


class ModelConfigError(CorralError):
    """The model's configuration file is not valid."""

    reason = "MODEL_CONFIG_INVALID"


class ModelNotFoundError(CorralError):
    """No model of that name is configured, and no file of that name exists."""

    reason = "MODEL_NOT_FOUND"

    @classmethod
    def of(cls, model: str) -> Self:
        """Return the error for a model."""
        return cls(f"model {model!r} not found", resource=Resource("model", model))


class ModelNotLoadedError(CorralError):
    """The call needs a loaded model, and must not load it."""

    reason = "MODEL_NOT_LOADED"

    @classmethod
    def of(cls, model: str) -> Self:
        """Return the error for a model."""
        return cls(f"model {model!r} is not loaded", resource=Resource("model", model))


class ModelDisabledError(CorralError):
    """The model is configured, but disabled."""

    reason = "MODEL_DISABLED"


class ModelBusyError(CorralError):
    """The model has running calls, so it cannot be unloaded without force."""

    reason = "MODEL_BUSY"


class BackendNotFoundError(CorralError):
    """No installed backend can run the model."""

    reason = "BACKEND_NOT_FOUND"


class BackendStartError(CorralError):
    """The backend's process failed to start, or exited before it was ready."""

    reason = "BACKEND_START_FAILED"


class BackendNotReadyError(CorralError):
    """The backend's process runs, but did not become ready in time."""

    reason = "BACKEND_NOT_READY"


class ModelLoadError(CorralError):
    """The backend failed to load the model."""

    reason = "MODEL_LOAD_FAILED"


class BackendCrashedError(CorralError):
    """The backend's process exited during a call."""

    reason = "BACKEND_CRASHED"


class ModelUnloadedError(CorralError):
    """The model was unloaded by force during a running or waiting call."""

    reason = "MODEL_UNLOADED"


class LoadBackoffError(CorralError):
    """The last load failed recently; the next one may start after `retry_after`."""

    reason = "LOAD_BACKOFF"


class CrashLoopError(CorralError):
    """The model's backend crashed repeatedly; it is in quarantine."""

    reason = "CRASH_LOOP"


class NoRoomError(CorralError):
    """The model does not fit alongside those in use, and none could be evicted in time."""

    reason = "NO_ROOM"


class QueueFullError(CorralError):
    """The concurrency limit is reached, and the queue is full."""

    reason = "QUEUE_FULL"


class DeadlineTooShortError(CorralError):
    """The call would still be queued at its deadline; `retry_after` is the estimated wait."""

    reason = "DEADLINE_TOO_SHORT"


class LeaseNotFoundError(CorralError):
    """The lease on a model's instance has ended, or never existed."""

    reason = "LEASE_NOT_FOUND"


class TooManyLeasesError(CorralError):
    """The maximum number of leases is reached; calls through the loader need no lease."""

    reason = "TOO_MANY_LEASES"


class ShuttingDownError(CorralError):
    """The service is stopping, and accepts no new calls."""

    reason = "SHUTTING_DOWN"


# Galleries, operations, downloads


class EntryNotFoundError(CorralError):
    """No gallery has an entry of that name."""

    reason = "GALLERY_ENTRY_NOT_FOUND"


class GalleryNotFoundError(CorralError):
    """No gallery of that name is configured."""

    reason = "GALLERY_NOT_FOUND"


class GalleryUnavailableError(CorralError):
    """A gallery's index could not be fetched or read."""

    reason = "GALLERY_UNAVAILABLE"


class NothingToInstallError(CorralError):
    """The gallery entry has no files that can be installed on this machine."""

    reason = "NOTHING_TO_INSTALL"


class OperationNotFoundError(CorralError):
    """No operation of that name exists."""

    reason = "OPERATION_NOT_FOUND"


class OperationCancelledError(CorralError):
    """A client cancelled the operation."""

    reason = "OPERATION_CANCELLED"


class DigestMismatchError(CorralError):
    """The digest of the downloaded file is wrong."""

    reason = "DIGEST_MISMATCH"


class DownloadError(CorralError):
    """A download failed for a reason that may be temporary: try again."""

    reason = "DOWNLOAD_FAILED"


class SourceNotFoundError(CorralError):
    """The download's source has no such file."""

    reason = "SOURCE_NOT_FOUND"


class AccessDeniedError(CorralError):
    """The download's source denies access: a token is missing, or a licence is not accepted."""

    reason = "SOURCE_ACCESS_DENIED"


class DiskFullError(CorralError):
    """There is not enough free space on the disk."""

    reason = "DISK_FULL"


class ConflictError(CorralError):
    """The resource to create exists already, or another client changed it meanwhile."""

    reason = "CONFLICT"


# Calls between the services


class ServiceUnreachableError(CorralError):
    """Nothing answers at the other service's address."""

    reason = "SERVICE_UNREACHABLE"


class DeadlineError(CorralError):
    """The call's deadline passed before there was an answer."""

    reason = "DEADLINE_EXCEEDED"


class UnknownRemoteError(CorralError):
    """Another server failed with an error that is not one of ours; `code` is its gRPC code's name."""

    reason = "REMOTE_ERROR"

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        resource: Resource | None = None,
        violations: Sequence[FieldViolation] = (),
    ) -> None:
        """`code` is the name of the remote gRPC code; for the rest, see CorralError."""
        super().__init__(
            message,
            metadata=metadata,
            retry_after=retry_after,
            resource=resource,
            violations=violations,
        )
        self.code = code


class InternalError(CorralError):
    """A bug; the details are in the service's log under the request id."""

    reason = "INTERNAL"
