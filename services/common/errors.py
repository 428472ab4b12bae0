"""One exception for each meaning. No transport in here: `status.py` maps them to gRPC and back."""

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
    """One field of a request that is wrong, and how."""

    field: str
    description: str


class CorralError(Exception):
    """Base of every error that a client is meant to see.

    The message is public: it says what is wrong and what to do about it.
    `reason` is stable: clients may match on it, so a value is never reused or renamed.
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
        """Take the public message, and what a program needs to act on it.

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
        """Blame one field: the message becomes `<field>: <description>`."""
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)])


class ModelNotNamedError(CorralError):
    """The call does not say which model it is for, and there is more than one."""

    reason = "MODEL_NOT_NAMED"


class PathEscapeError(CorralError):
    """A file name leads out of the folder it must stay in."""

    reason = "PATH_ESCAPES_FOLDER"


class UnsupportedSourceError(CorralError):
    """The scheme of a download URI is not one we know."""

    reason = "UNSUPPORTED_SOURCE"


class MessageTooLargeError(CorralError):
    """A message of a call is larger than the server passes on."""

    reason = "MESSAGE_TOO_LARGE"

    @classmethod
    def of(cls, side: str, size: int, limit: int) -> Self:
        """Name whose message it is (`request` or `response`), its size and the limit, in bytes."""
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
    """The data plane was asked for something that only the control plane may do."""

    reason = "CONTROL_PLANE_ONLY"


class NotImplementedYetError(CorralError):
    """The RPC is in the contract, and nothing stands behind it yet."""

    reason = "NOT_IMPLEMENTED"

    @classmethod
    def of(cls, method: str) -> Self:
        """Name the RPC that is not there yet."""
        return cls(f"{method} is not implemented yet", metadata={"method": method})


# Models and backends


class ModelConfigError(CorralError):
    """The YAML of a model cannot be used."""

    reason = "MODEL_CONFIG_INVALID"


class ModelNotFoundError(CorralError):
    """No model of that name is configured, and no file of that name is there."""

    reason = "MODEL_NOT_FOUND"

    @classmethod
    def of(cls, model: str) -> Self:
        """Name the model that is not there."""
        return cls(f"model {model!r} not found", resource=Resource("model", model))


class ModelNotLoadedError(CorralError):
    """The call needs a running model and must not be the one that loads it."""

    reason = "MODEL_NOT_LOADED"

    @classmethod
    def of(cls, model: str) -> Self:
        """Name the model that is not loaded."""
        return cls(f"model {model!r} is not loaded", resource=Resource("model", model))


class ModelDisabledError(CorralError):
    """The model is configured and switched off."""

    reason = "MODEL_DISABLED"


class ModelBusyError(CorralError):
    """The model still serves calls, so it can not be unloaded without force."""

    reason = "MODEL_BUSY"


class BackendNotFoundError(CorralError):
    """No installed backend can run the model."""

    reason = "BACKEND_NOT_FOUND"


class BackendStartError(CorralError):
    """The backend's process could not be started, or ended before it was ready."""

    reason = "BACKEND_START_FAILED"


class BackendNotReadyError(CorralError):
    """The backend's process runs and did not become ready in time."""

    reason = "BACKEND_NOT_READY"


class ModelLoadError(CorralError):
    """The backend is ready and refused to load the model."""

    reason = "MODEL_LOAD_FAILED"


class BackendCrashedError(CorralError):
    """The backend's process ended under a running call."""

    reason = "BACKEND_CRASHED"


class ModelUnloadedError(CorralError):
    """The model was unloaded, by force, under a running or waiting call."""

    reason = "MODEL_UNLOADED"


class LoadBackoffError(CorralError):
    """The last load failed a moment ago; `retry_after` says when the next may start."""

    reason = "LOAD_BACKOFF"


class CrashLoopError(CorralError):
    """The model's backend crashed again and again; it is in quarantine."""

    reason = "CRASH_LOOP"


class NoRoomError(CorralError):
    """The model does not fit beside those in use, and none of them could go in time."""

    reason = "NO_ROOM"


class QueueFullError(CorralError):
    """A limit is reached and as many callers as allowed wait already."""

    reason = "QUEUE_FULL"


class DeadlineTooShortError(CorralError):
    """The call would still wait at its deadline; `retry_after` says how long it would have waited."""

    reason = "DEADLINE_TOO_SHORT"


class LeaseNotFoundError(CorralError):
    """The lease on a model's instance has ended, or never was."""

    reason = "LEASE_NOT_FOUND"


class TooManyLeasesError(CorralError):
    """As many clients as may hold leases already; calls through the loader need none."""

    reason = "TOO_MANY_LEASES"


class ShuttingDownError(CorralError):
    """The service is on its way down and takes no new work."""

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
    """The gallery entry names nothing that could be installed on this machine."""

    reason = "NOTHING_TO_INSTALL"


class OperationNotFoundError(CorralError):
    """No long-running operation of that name is known."""

    reason = "OPERATION_NOT_FOUND"


class OperationCancelledError(CorralError):
    """A client cancelled the operation."""

    reason = "OPERATION_CANCELLED"


class DigestMismatchError(CorralError):
    """What was downloaded is not what the digest promised."""

    reason = "DIGEST_MISMATCH"


class DownloadError(CorralError):
    """A download failed in a way that may pass: try again."""

    reason = "DOWNLOAD_FAILED"


class SourceNotFoundError(CorralError):
    """The download's source says that there is no such thing."""

    reason = "SOURCE_NOT_FOUND"


class AccessDeniedError(CorralError):
    """The download's source refuses us: a token is missing, or a licence is not accepted."""

    reason = "SOURCE_ACCESS_DENIED"


class DiskFullError(CorralError):
    """There is not enough room on the disk."""

    reason = "DISK_FULL"


class ConflictError(CorralError):
    """The thing to create exists already, or was changed by someone else meanwhile."""

    reason = "CONFLICT"


# Calls between the services


class ServiceUnreachableError(CorralError):
    """Nobody answers at the other service's address."""

    reason = "SERVICE_UNREACHABLE"


class DeadlineError(CorralError):
    """The time for the call was over before there was an answer."""

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
        """Take the remote code's name beside what every error has."""
        super().__init__(
            message,
            metadata=metadata,
            retry_after=retry_after,
            resource=resource,
            violations=violations,
        )
        self.code = code


class InternalError(CorralError):
    """A bug on our side; the details are in the service's log under the request id."""

    reason = "INTERNAL"
