"""Failures as users see them: one line for what failed, one for what to do next."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Final, TypeVar

from services.common import errors
from services.common.errors import CorralError, DeadlineError

_Result = TypeVar("_Result")


class Failure(Exception):
    """Ends a command: `message` is what failed, `hint` what to do about it.

    `details` are further lines between the two, `retry_after` the seconds after which another try
    may help, if that is known.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        exit_code: int = 1,
        reason: str = "FAILED",
        details: Sequence[str] = (),
        retry_after: float | None = None,
    ) -> None:
        """`reason` is the stable identifier for `--json`."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.reason = reason
        self.details = tuple(details)
        self.retry_after = retry_after


class Unreachable(Failure):
    """Nothing answers at a service's address."""

    def __init__(self, service: str, address: str, hint: str) -> None:
        """`address` is where the service should be."""
        super().__init__(
            f"cannot reach the {service} at {address}", hint, reason="SERVICE_UNREACHABLE"
        )
        self.service = service
        self.address = address


class Lost(Failure):
    """A service answered, and then the connection broke."""

    def __init__(self, service: str, address: str, text: str) -> None:
        """`text` is gRPC's description of the break."""
        super().__init__(
            f"the connection to the {service} at {address} broke: {text}",
            "check with `corral status` whether it still runs, then try again",
            reason="CONNECTION_LOST",
        )


# By reason, not by class, so that errors of later servers still get their hint.
_HINTS: Final[dict[str, str]] = {
    "MODEL_NOT_FOUND": "list the models with `corral models`, or what can be installed with"
    " `corral models --available`",
    "MODEL_NOT_LOADED": "load it with `corral load {model}`",
    "MODEL_BUSY": "wait for the running calls, or cut them with `corral unload {model} --force`",
    "MODEL_DISABLED": "enable it in its configuration file",
    "MODEL_CONFIG_INVALID": "fix its configuration file, then try again",
    "MODEL_LOAD_FAILED": "see the backend's output with `corral logs {model}`",
    "BACKEND_START_FAILED": "see the backend's output with `corral logs {model}`",
    "BACKEND_NOT_READY": "see the backend's output with `corral logs {model}`",
    "BACKEND_CRASHED": "see the backend's output with `corral logs {model}`, then try again",
    "BACKEND_NOT_FOUND": "install the backend, or name it to `corral up` with --external-backend",
    "LOAD_BACKOFF": "find the cause with `corral logs {model}` and fix it; then try at once with"
    " `corral load {model} --now`, or try again{after}",
    "CRASH_LOOP": "find the cause with `corral logs {model}` and fix it; then end the quarantine with"
    " `corral load {model} --now`, or try again{after}",
    "NO_ROOM": "see what uses the memory with `corral plan {model}`, unload or unpin some of it, then"
    " try again{after}",
    "QUEUE_FULL": "try again{after}, or unload a model that is not needed",
    "SHUTTING_DOWN": "start it again with `corral up`",
    "GALLERY_ENTRY_NOT_FOUND": "search the galleries with `corral models --available --search TEXT`",
    "GALLERY_UNAVAILABLE": "check the network, then try again{after}",
    "OPERATION_NOT_FOUND": "list the operations with `corral operations`",
    "DIGEST_MISMATCH": "try again; if it fails again, the gallery's entry or its source is wrong",
    "DOWNLOAD_FAILED": "run the same command again: what was fetched is kept",
    "SOURCE_NOT_FOUND": "the gallery's entry points to a missing file: choose another entry",
    "SOURCE_ACCESS_DENIED": "accept the licence or set a token (HF_TOKEN) for the gallery service",
    "DISK_FULL": "free some space, then run the same command again: what was fetched is kept",
    "CONFLICT": "look at it with `corral models`, or replace it with --force",
    "DEADLINE_EXCEEDED": "give it more time with --timeout, or see `corral status`",
    "INTERNAL": "see the service's log",
    "NOT_IMPLEMENTED": "",
    "INVALID_REQUEST": "see the command's options with --help",
}


def explain(error: CorralError, *, model: str = "") -> Failure:
    """Return the failure to show for an error of a service."""
    after = f" in {error.retry_after:.0f} s" if error.retry_after else ""
    name = model or (error.resource.name if error.resource else "") or "MODEL"
    # An error of a later version carries its own reason in addition to its class's.
    reason = error.metadata.get("remote_reason", error.reason)
    hint = _HINTS.get(reason, "").format(model=name.removeprefix("models/"), after=after)
    if isinstance(error, errors.UnknownRemoteError) and error.code == "UNIMPLEMENTED":
        hint = "the server at this address does not offer that: is it the right service?"
    usage = isinstance(error, errors.InvalidRequestError)
    return Failure(
        error.message,
        hint,
        exit_code=2 if usage else 1,
        reason=reason,
        retry_after=error.retry_after,
    )


async def within_deadline(work: Awaitable[_Result], message: str, hint: str) -> _Result:
    """Return what `work` returns; fail with this message and hint if its deadline passes."""
    try:
        return await work
    except DeadlineError:
        raise Failure(message, hint, reason="DEADLINE_EXCEEDED") from None
